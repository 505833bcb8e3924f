//! `cargo xtask image`: the images of the product, and of Bookinfo for trying it, from binaries that it builds: as archives that
//! `cargo xtask cluster load` and every registry tool take, or as folders for a Dockerfile. No daemon, no base image, and nothing in them but the program and
//! the libraries it needs: no shell, no package manager. The same binaries give the same bytes.
mod archive;
mod content;

pub use archive::{Image, write};

use crate::run;
use anyhow::{Context, Result, ensure};
use content::Content;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Options.
#[derive(clap::Args)]
pub struct Args {
    /// Where the images go [default: images in the target folder].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Of release binaries.
    #[arg(long)]
    release: bool,
    /// Instead of the product's, the images of Bookinfo under Istio's names: our own programs.
    #[arg(long)]
    bookinfo: bool,
    /// Write folders with what the images hold, as deploy/Dockerfile wants them.
    #[arg(long)]
    tree: bool,
    /// Take the binaries as they were built last, where they were.
    #[arg(long)]
    no_build: bool,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    run::need(&["cargo", "rustc", "cc", "ldd", "sha256sum"])?;
    let target = run::binary_dir("")?;
    let out = args.out.clone().unwrap_or_else(|| target.join("images"));
    fs::create_dir_all(&out).with_context(|| format!("make {}", out.display()))?;
    let stripped = out.join("stripped");
    for content in if args.bookinfo { content::bookinfo() } else { content::product(&run::root()?) } {
        let image = assemble(&content, args, &target, &stripped)?;
        if args.tree {
            let folder = out.join(content.file_name());
            ensure!(!folder.exists(), "{} exists: name another folder with --out", folder.display());
            archive::write_tree(&image, &folder)?;
            println!("{}", folder.display());
        } else {
            let archive = out.join(format!("{}.tar", content.file_name()));
            let digest = write(&image, &archive).with_context(|| format!("make the image {}", content.name))?;
            println!("{}  {}  {digest}", archive.display(), content.name);
        }
    }
    match fs::remove_dir_all(&stripped) {
        Err(error) if stripped.exists() => Err(error).with_context(|| format!("remove {}", stripped.display())),
        _ => Ok(()),
    }
}

/// Makes the image of the load programs; returns the archive and what pods call it.
pub fn lab(release: bool, no_build: bool) -> Result<(PathBuf, String)> {
    run::need(&["cargo", "rustc", "ldd"])?;
    let (target, content) = (run::binary_dir("")?, content::lab());
    let args = Args { out: None, release, bookinfo: false, tree: false, no_build };
    let out = target.join("images");
    let image = assemble(&content, &args, &target, &out.join("stripped-lab"))?;
    let archive = out.join(format!("{}.tar", content.file_name()));
    write(&image, &archive).with_context(|| format!("make the image {}", content.name))?;
    Ok((archive, content.name))
}

/// Builds what an image holds, unless it is to be taken as it is.
fn assemble(content: &Content, args: &Args, target: &Path, stripped: &Path) -> Result<Image> {
    let mut image = content.image();
    for program in &content.programs {
        let built = program.path(args.release, target)?;
        if !(args.no_build && built.exists()) {
            program.build(args.release, target)?;
        }
        let folder = stripped.join(content.file_name());
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let small = folder.join(program.binary);
        // Lines of sources are for debuggers; the names of functions stay, for backtraces and profilers.
        let mut strip = Command::new("strip");
        strip.arg("--strip-debug").arg("-o").arg(&small).arg(&built);
        let source = if run::find("strip").is_some() { run::check(&mut strip).map(|()| small)? } else { built };
        image = image.file(source, &format!("/{}", program.binary));
    }
    Ok(image)
}
