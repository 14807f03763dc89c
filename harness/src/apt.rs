//! Debian packages of any suite, from the mirror that this machine already uses, without touching its own apt state.
//!
//! No mirror is named in the repository: it comes from the machine's apt configuration or from `--mirror`. Each suite
//! has private list and cache directories, so nothing is installed and no root is needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};

use crate::artifact::sha256_of;
use crate::tool;

/// Keyring of the package debian-archive-keyring: the keys of every Debian release in support.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Age at which private package lists are fetched again.
const LISTS_AGE: Duration = Duration::from_secs(6 * 3600);

/// Where packages come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// The archive.
    pub main: String,
    /// Its security updates, if the machine has them configured.
    pub security: Option<String>,
}

impl Mirror {
    /// The given archive, or the one in the machine's apt configuration.
    ///
    /// # Errors
    /// When apt cannot be asked, or has no Debian archive configured.
    pub fn find(given: Option<&str>) -> Result<Self> {
        let listed = tool::text(tool::command("apt-get").args([
            "indextargets",
            "--format",
            "$(ORIGIN)|$(LABEL)|$(REPO_URI)",
            "Created-By: Packages",
        ]))
        .context("asking apt for this machine's mirror")?;
        let found = Self::in_targets(&listed);
        match (given, found) {
            (Some(url), found) => Ok(Self {
                main: url.to_owned(),
                security: found.and_then(|mirror| mirror.security),
            }),
            (None, Some(mirror)) => Ok(mirror),
            (None, None) => {
                bail!("apt has no Debian archive configured\nhint: name one with --mirror URL")
            }
        }
    }

    /// Reads lines of `origin|label|uri`. Lists that were never fetched have no origin: the path tells then.
    fn in_targets(listed: &str) -> Option<Self> {
        let mut main = None;
        let mut security = None;
        for line in listed.lines() {
            let mut fields = line.splitn(3, '|');
            let (Some(_origin), Some(label), Some(uri)) =
                (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let path = uri.trim_end_matches('/');
            if label == "Debian-Security" || path.ends_with("debian-security") {
                security.get_or_insert_with(|| uri.to_owned());
            } else if label == "Debian" || path.ends_with("/debian") {
                main.get_or_insert_with(|| uri.to_owned());
            }
        }
        main.map(|main| Self { main, security })
    }

    /// The lines of a sources.list for a suite.
    #[must_use]
    pub fn sources(&self, suite: &str) -> Vec<String> {
        let mut lines = vec![format!("deb [signed-by={KEYRING}] {} {suite} main", self.main)];
        let stable = !suite.contains('-') && suite != "sid";
        if let Some(security) = self.security.as_ref().filter(|_| stable) {
            lines.push(format!("deb [signed-by={KEYRING}] {security} {suite}-security main"));
        }
        lines
    }
}

/// One package at one version.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of the .deb, in hexadecimal.
    pub sha256: String,
}

/// A package's paragraph in the lists.
#[derive(Debug, Clone)]
pub struct Shown {
    /// Name, version, hash.
    pub package: Package,
    /// The `Depends` field, split at commas.
    pub depends: Vec<String>,
}

/// The package lists of one suite.
#[derive(Debug)]
pub struct Suite {
    name: String,
    dir: PathBuf,
}

impl Suite {
    /// Opens the private lists of a suite below `dir`, fetching them if they are missing or old.
    ///
    /// # Errors
    /// When the lists cannot be fetched.
    pub fn open(dir: &Path, mirror: &Mirror, name: &str) -> Result<Self> {
        let suite = Self { name: name.to_owned(), dir: dir.join(name) };
        fs::create_dir_all(suite.dir.join("lists/partial"))
            .context("making private apt directories")?;
        fs::create_dir_all(suite.dir.join("cache/archives/partial"))
            .context("making private apt directories")?;
        let sources = mirror.sources(name).join("\n") + "\n";
        let list = suite.dir.join("sources.list");
        let stamp = suite.dir.join("updated");
        let same = fs::read_to_string(&list).is_ok_and(|known| known == sources);
        if !same || !is_fresh(&stamp, LISTS_AGE) {
            fs::write(&list, sources).with_context(|| format!("writing {}", list.display()))?;
            tool::output(suite.apt("apt-get").arg("update"))
                .with_context(|| format!("fetching the package lists of {name}"))?;
            fs::write(&stamp, "").with_context(|| format!("writing {}", stamp.display()))?;
        }
        Ok(suite)
    }

    /// The newest version of a package, or the given one. None when the lists do not have it.
    ///
    /// # Errors
    /// When apt's answer cannot be read.
    pub fn show(&self, name: &str, version: Option<&str>) -> Result<Option<Shown>> {
        let wanted = version.map_or_else(|| name.to_owned(), |version| format!("{name}={version}"));
        let mut command = self.apt("apt-cache");
        let out = command
            .args(["show", "--no-all-versions", &wanted])
            .output()
            .context("running apt-cache")?;
        if !out.status.success() {
            return Ok(None);
        }
        let text = String::from_utf8(out.stdout).context("reading what apt-cache printed")?;
        parse_paragraph(&text)
            .with_context(|| format!("reading the paragraph of {wanted} in {}", self.name))
            .map(Some)
    }

    /// Downloads a package, checks its hash and unpacks it into `into`.
    ///
    /// # Errors
    /// When the mirror lacks it, its hash is another one, or it cannot be unpacked.
    pub fn unpack(&self, package: &Package, into: &Path) -> Result<()> {
        let at = tempfile::tempdir_in(&self.dir).context("making a directory for a download")?;
        let wanted = format!("{}={}", package.name, package.version);
        tool::output(self.apt("apt-get").args(["download", &wanted]).current_dir(at.path()))
            .with_context(|| format!("downloading {wanted} of {}", self.name))?;
        let mut files = fs::read_dir(at.path()).context("looking for the download")?;
        let deb = files
            .next()
            .context("apt-get download left no file")?
            .context("looking for the download")?
            .path();
        let sha256 = sha256_of(&deb)?;
        ensure!(
            sha256 == package.sha256,
            "{wanted} has the hash {sha256} instead of {}",
            package.sha256
        );
        tool::output(tool::command("dpkg-deb").arg("-x").arg(&deb).arg(into))
            .with_context(|| format!("unpacking {wanted}"))?;
        Ok(())
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = tool::command(program);
        let dir = self.dir.display();
        // A status of /dev/null: or apt-cache answers from what this machine has installed. The sandbox user could
        // not write to our directories.
        for option in [
            format!("Dir::Etc::sourcelist={dir}/sources.list"),
            "Dir::Etc::sourceparts=-".to_owned(),
            "Dir::Etc::preferences=-".to_owned(),
            "Dir::Etc::preferencesparts=-".to_owned(),
            format!("Dir::State::lists={dir}/lists"),
            "Dir::State::status=/dev/null".to_owned(),
            format!("Dir::Cache={dir}/cache"),
            "Acquire::Languages=none".to_owned(),
            "Acquire::Retries=3".to_owned(),
            format!(
                "APT::Sandbox::User={}",
                std::env::var("USER").unwrap_or_else(|_| "root".to_owned())
            ),
            "Debug::NoLocking=1".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command.arg("-q");
        command
    }
}

/// True when the file was changed less than `age` ago.
#[must_use]
pub fn is_fresh(path: &Path, age: Duration) -> bool {
    let changed = fs::metadata(path).and_then(|meta| meta.modified());
    changed
        .is_ok_and(|time| SystemTime::now().duration_since(time).is_ok_and(|passed| passed < age))
}

fn parse_paragraph(text: &str) -> Result<Shown> {
    let first = text.split("\n\n").next().unwrap_or_default();
    let field =
        |key: &str| first.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
    let must =
        |key: &str| field(key).map(str::to_owned).with_context(|| format!("looking for {key}"));
    let package =
        Package { name: must("Package")?, version: must("Version")?, sha256: must("SHA256")? };
    let depends =
        field("Depends").unwrap_or_default().split(',').map(|dep| dep.trim().to_owned()).collect();
    Ok(Shown { package, depends })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_the_debian_archive_among_other_sources() {
        let listed = "nodistro|. nodistro|https://other.invalid/node/\nDebian|Debian|http://m.invalid/x/\n\
                      Debian|Debian-Security|http://s.invalid/y/\nDebian|Debian|http://n.invalid/debian/\n";
        let mirror = Mirror::in_targets(listed).unwrap();
        assert_eq!(mirror.main, "http://m.invalid/x/");
        assert_eq!(mirror.security.as_deref(), Some("http://s.invalid/y/"));
    }

    #[test]
    fn lists_that_were_never_fetched_are_told_by_their_path() {
        let mirror =
            Mirror::in_targets("||http://m.invalid/debian/\n||http://m.invalid/debian-security/\n")
                .unwrap();
        assert_eq!(mirror.main, "http://m.invalid/debian/");
        assert_eq!(Mirror::in_targets("||http://m.invalid/ubuntu/\n"), None);
    }

    #[test]
    fn only_stable_suites_have_security_updates() {
        let mirror = Mirror { main: "http://m".to_owned(), security: Some("http://s".to_owned()) };
        assert_eq!(mirror.sources("bookworm").len(), 2);
        assert_eq!(mirror.sources("sid").len(), 1);
        assert_eq!(mirror.sources("bookworm-backports").len(), 1);
    }

    #[test]
    fn a_paragraph_gives_version_hash_and_dependencies() {
        let shown = parse_paragraph(
            "Package: a\nVersion: 1-2\nDepends: b (= 1), c | d\nSHA256: ff\n\nPackage: x\n",
        )
        .unwrap();
        assert_eq!(shown.package.version, "1-2");
        assert_eq!(shown.depends, ["b (= 1)", "c | d"]);
        assert!(parse_paragraph("Package: a\n").is_err());
    }
}
