//! Images of containers from files of this machine, with no daemon: an archive as `docker save` writes it, which `ctr images import` and
//! every registry tool reads. The same files give the same bytes. Called by [`super`], and by the cluster for what its nodes run.
use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tar::{Builder, EntryType, Header};

/// What an image holds and runs.
#[derive(Clone, Debug, Default)]
pub struct Image {
    name: String,
    user: Option<String>,
    entrypoint: Vec<String>,
    command: Vec<String>,
    labels: BTreeMap<String, String>,
    files: BTreeMap<String, PathBuf>,
    links: BTreeMap<String, String>,
}

impl Image {
    /// An image without files; `name` with registry and tag, as pods name it.
    pub fn new(name: &str, entrypoint: &[&str]) -> Image {
        let entrypoint = entrypoint.iter().map(|word| (*word).to_owned()).collect();
        Image { name: name.to_owned(), entrypoint, ..Image::default() }
    }

    /// As whom it runs unless a pod says otherwise, in numbers: a kubelet cannot tell whether a name is root's.
    pub fn user(mut self, user: u32, group: u32) -> Image {
        self.user = Some(format!("{user}:{group}"));
        self
    }

    /// Says something about it, under one of the names that the image specification knows.
    pub fn label(mut self, name: &str, value: &str) -> Image {
        self.labels.insert(format!("org.opencontainers.image.{name}"), value.to_owned());
        self
    }

    /// What runs, or what the entry point is given, unless a pod says otherwise.
    pub fn command(mut self, words: &[&str]) -> Image {
        self.command = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Adds a file under an absolute path.
    pub fn file(mut self, source: PathBuf, target: &str) -> Image {
        self.files.insert(target.to_owned(), source);
        self
    }

    /// Adds busybox under the names of all it can be.
    pub fn busybox(mut self, program: &Path) -> Result<Image> {
        let output = Command::new(program).arg("--list").output().context("start busybox")?;
        ensure!(output.status.success(), "busybox does not say what it can be");
        for name in String::from_utf8_lossy(&output.stdout).lines() {
            self.links.insert(format!("/bin/{name}"), "/bin/busybox".to_owned());
        }
        self.links.remove("/bin/busybox");
        Ok(self.file(program.to_path_buf(), "/bin/busybox"))
    }
}

/// Writes the archive; programs get the shared libraries they need beside them. Returns the digest by which container runtimes know the image.
pub fn write(image: &Image, archive: &Path) -> Result<String> {
    let layer = layer(image)?;
    let layer_digest = sha256(&layer)?;
    let config = json!({
        "architecture": architecture()?,
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "User": image.user.as_deref().unwrap_or_default(),
            "Entrypoint": (!image.entrypoint.is_empty()).then_some(&image.entrypoint),
            "Cmd": (!image.command.is_empty()).then_some(&image.command),
            "WorkingDir": "/",
            "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
            "Labels": image.labels,
        },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer_digest}")] },
    })
    .to_string()
    .into_bytes();
    let digest = sha256(&config)?;
    let config_name = format!("{digest}.json");
    let layer_name = format!("{layer_digest}/layer.tar");
    let manifest = json!([{ "Config": config_name, "RepoTags": [image.name], "Layers": [layer_name] }]).to_string();

    let unfinished = archive.with_extension("unfinished");
    let mut tar = Builder::new(File::create(&unfinished).context("make the archive")?);
    for (name, data) in [(&config_name[..], &config[..]), (&layer_name, &layer), ("manifest.json", manifest.as_bytes())]
    {
        append(&mut tar, name, EntryType::Regular, 0o644, data)?;
    }
    tar.into_inner().and_then(|mut file| file.flush()).context("end the archive")?;
    fs::rename(&unfinished, archive).context("name the archive")?;
    Ok(format!("sha256:{digest}"))
}

/// Writes what a container of the image sees as its files into a new folder, for those who make the image by other means.
pub fn write_tree(image: &Image, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let layer = layer(image)?;
    let mut archive = tar::Archive::new(&layer[..]);
    archive.set_preserve_permissions(true);
    archive.unpack(folder).with_context(|| format!("write {}", folder.display()))
}

fn layer(image: &Image) -> Result<Vec<u8>> {
    let mut files = image.files.clone();
    for source in image.files.values() {
        for library in libraries(source)? {
            let real = fs::canonicalize(&library).with_context(|| format!("find {library}"))?;
            files.entry(library).or_insert(real);
        }
    }
    let mut tar = Builder::new(Vec::new());
    let mut folders = BTreeSet::new();
    for (name, mode) in [("tmp", 0o1777), ("etc", 0o755), ("proc", 0o755), ("sys", 0o755), ("dev", 0o755)] {
        folders.insert(name.to_owned());
        append(&mut tar, name, EntryType::Directory, mode, &[])?;
    }
    append(
        &mut tar,
        "etc/passwd",
        EntryType::Regular,
        0o644,
        b"root:x:0:0:root:/:/bin/sh\nnonroot:x:65532:65532:nonroot:/:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    )?;
    for (target, source) in &files {
        let name = inner(&mut tar, &mut folders, target)?;
        let data = fs::read(source).with_context(|| format!("read {}", source.display()))?;
        let runs = fs::metadata(source).is_ok_and(|about| about.permissions().mode() & 0o111 != 0);
        append(&mut tar, name, EntryType::Regular, if runs { 0o755 } else { 0o644 }, &data)?;
    }
    for (target, to) in image.links.iter().filter(|(target, _)| !files.contains_key(*target)) {
        let name = inner(&mut tar, &mut folders, target)?;
        let mut header = header(EntryType::Symlink, 0o777, 0);
        tar.append_link(&mut header, name, to).with_context(|| format!("link {target}"))?;
    }
    tar.into_inner().context("end the layer")
}

/// The name inside the layer, with the folders above it made.
fn inner<'a>(tar: &mut Builder<Vec<u8>>, folders: &mut BTreeSet<String>, target: &'a str) -> Result<&'a str> {
    let Some(name) = target.strip_prefix('/') else { bail!("`{target}` is not an absolute path") };
    for (at, _) in name.match_indices('/') {
        if folders.insert(name[..at].to_owned()) {
            append(tar, &name[..at], EntryType::Directory, 0o755, &[])?;
        }
    }
    Ok(name)
}

fn append(tar: &mut Builder<impl Write>, name: &str, kind: EntryType, mode: u32, data: &[u8]) -> Result<()> {
    let mut header = header(kind, mode, data.len() as u64);
    tar.append_data(&mut header, name, data).with_context(|| format!("add {name}"))
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header
}

/// Absolute paths of the shared libraries of a program, and of its loader. None for what is no program, or a static one.
fn libraries(source: &Path) -> Result<Vec<String>> {
    let mut magic = [0; 4];
    let mut file = File::open(source).with_context(|| format!("open {}", source.display()))?;
    if file.read_exact(&mut magic).is_err() || magic != *b"\x7fELF" {
        return Ok(Vec::new());
    }
    let output = Command::new("ldd").arg(source).output().context("start ldd")?;
    Ok(needed(&String::from_utf8_lossy(&output.stdout)))
}

/// Reads what `ldd` prints.
fn needed(said: &str) -> Vec<String> {
    let path = |line: &str| {
        let (before, _) = line.rsplit_once(" (0x")?;
        let path = before.rsplit_once("=> ").map_or(before, |(_, path)| path).trim();
        path.starts_with('/').then(|| path.to_owned())
    };
    said.lines().filter_map(path).collect()
}

fn architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("images are not made for {other}"),
    }
}

fn sha256(data: &[u8]) -> Result<String> {
    let mut child =
        Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("start sha256sum")?;
    // It says nothing before it has read all.
    child.stdin.take().context("no input")?.write_all(data).context("write to sha256sum")?;
    let output = child.wait_with_output().context("wait for sha256sum")?;
    let said = String::from_utf8_lossy(&output.stdout);
    said.split(' ').next().filter(|sum| sum.len() == 64).map(str::to_owned).context("sha256sum gives no sum")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_names_what_it_holds_by_its_digest_and_is_the_same_each_time() {
        let folder = std::env::temp_dir().join(format!("undermesh-image-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let text = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        let image = Image::new("test.example/thing:1", &["/opt/thing/text"]).user(65532, 65532).label("title", "thing");
        let image = image.file(text.into(), "/opt/thing/text");
        let (one, two) = (folder.join("one.tar"), folder.join("two.tar"));
        let digests = [&one, &two].map(|archive| write(&image, archive).expect("written"));
        assert_eq!(digests[0], digests[1]);
        assert!(fs::read(&one).expect("read") == fs::read(&two).expect("read"));
        let mut contents = BTreeMap::new();
        for entry in tar::Archive::new(File::open(&one).expect("open")).entries().expect("entries") {
            let mut entry = entry.expect("an entry");
            let mut data = Vec::new();
            entry.read_to_end(&mut data).expect("data");
            contents.insert(entry.path().expect("a path").to_string_lossy().into_owned(), data);
        }
        let manifest: serde_json::Value = serde_json::from_slice(&contents["manifest.json"]).expect("a manifest");
        let config = manifest[0]["Config"].as_str().expect("a config");
        assert_eq!(config, format!("{}.json", sha256(&contents[config]).expect("a sum")));
        assert_eq!(digests[0], format!("sha256:{}", config.trim_end_matches(".json")));
        let config: serde_json::Value = serde_json::from_slice(&contents[config]).expect("the config");
        assert_eq!(config["config"]["User"], "65532:65532");
        assert_eq!(config["config"]["Labels"], json!({ "org.opencontainers.image.title": "thing" }));
        let layer = &contents[manifest[0]["Layers"][0].as_str().expect("a layer")];
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", sha256(layer).expect("a sum")));
        let names: Vec<String> = tar::Archive::new(&layer[..])
            .entries()
            .expect("entries")
            .map(|entry| entry.expect("an entry").path().expect("a path").to_string_lossy().into_owned())
            .collect();
        assert!(names.ends_with(&["opt".into(), "opt/thing".into(), "opt/thing/text".into()]), "{names:?}");
        fs::remove_dir_all(&folder).expect("removed");
    }

    #[test]
    fn a_tree_holds_a_program_its_libraries_and_nothing_else() {
        let folder = std::env::temp_dir().join(format!("undermesh-tree-{}", std::process::id()));
        let program = std::env::current_exe().expect("a program");
        let image = Image::new("test.example/thing:1", &["/thing"]).file(program, "/thing");
        write_tree(&image, &folder).expect("written");
        let mut found = Vec::new();
        let mut todo = vec![folder.clone()];
        while let Some(at) = todo.pop() {
            for entry in fs::read_dir(&at).expect("a folder").flatten() {
                match entry.path() {
                    path if path.is_dir() => todo.push(path),
                    path => found.push(path.strip_prefix(&folder).expect("below").display().to_string()),
                }
            }
        }
        fs::remove_dir_all(&folder).expect("removed");
        let is_library = |name: &String| name.starts_with("lib") && name.contains(".so");
        let (libraries, mut others): (Vec<String>, Vec<String>) = found.into_iter().partition(is_library);
        others.sort();
        assert_eq!(others, ["etc/passwd", "thing"]);
        assert!(libraries.iter().any(|name| name.contains("/ld-")), "a loader: {libraries:?}");
        assert!(libraries.iter().any(|name| name.ends_with("libc.so.6")), "{libraries:?}");
    }

    #[test]
    fn libraries_are_read_from_what_ldd_prints() {
        let said = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f01)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f02)\n\tlibgone.so => not found\n";
        assert_eq!(needed(said), ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]);
        assert!(needed("\tstatically linked\n").is_empty());
    }
}
