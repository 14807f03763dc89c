//! Debian trees from recipes in `images/`: the guest's root as an ext4 image, and trees for people as a tar.
//!
//! Root is not needed: without it mmdebstrap works in a user namespace, and so does making the image, so that owners
//! are right either way.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::apt::Mirror;
use crate::artifact::{Key, Store, sha256_of};
use crate::ext4::image_kib;
use crate::tool;
use crate::workspace::Workspace;

/// What no test needs: documentation and translations.
const EXCLUDED: [&str; 4] =
    ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"];

/// File of an entry with the hash of its image.
const HASH: &str = "sha256";

/// The tools that make images, whose next versions may make others of the same packages.
const TOOLS: [&str; 3] = ["e2fsprogs", "mmdebstrap", "tar"];

/// The versions of [`TOOLS`], as Debian names them; nothing where dpkg does not know them, which is a version, too.
fn tool_versions() -> &'static str {
    static VERSIONS: LazyLock<String> = LazyLock::new(|| {
        let mut asked = tool::command("dpkg-query");
        asked.args(["-W", "-f", "${Package} ${Version}\n"]).args(TOOLS);
        // It fails when one of them is missing, and tells the others nevertheless.
        let told = asked.output().map(|output| output.stdout).unwrap_or_default();
        String::from_utf8_lossy(&told).into_owned()
    });
    &VERSIONS
}

/// A file of `images/`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Debian suite.
    pub suite: String,
    /// What the tree ends up as.
    pub form: Form,
    /// Packages beside the minimal base.
    pub packages: Vec<String>,
}

/// What a tree ends up as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// `root.ext4`, read-only and without journal.
    Ext4,
    /// `root.tar`.
    Tar,
}

impl Form {
    fn file(self) -> &'static str {
        match self {
            Self::Ext4 => "root.ext4",
            Self::Tar => "root.tar",
        }
    }
}

/// A recipe by its name, and the text it was read from.
#[derive(Debug, Clone)]
pub struct Named {
    /// File name without `.toml`.
    pub name: String,
    /// What it says.
    pub recipe: Recipe,
    text: String,
}

/// All recipes of the checkout, by name.
///
/// # Errors
/// When one cannot be read.
pub fn recipes(workspace: &Workspace) -> Result<Vec<Named>> {
    let dir = workspace.file("images");
    let mut found = Vec::new();
    for entry in fs::read_dir(&dir).context("listing images/")? {
        let path = entry.context("listing images/")?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let text =
                fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            let recipe =
                toml::from_str(&text).with_context(|| format!("reading {}", path.display()))?;
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            found.push(Named { name, recipe, text });
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

impl Named {
    /// The recipe of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(workspace: &Workspace, name: &str) -> Result<Self> {
        let all = recipes(workspace)?;
        let known = all.iter().map(|named| named.name.clone()).collect::<Vec<_>>().join(", ");
        let found = all.into_iter().find(|named| named.name == name);
        found.with_context(|| {
            format!("there is no recipe \"{name}\" in images/\nhint: there are {known}")
        })
    }

    /// The built file, if the store has it.
    #[must_use]
    pub fn built(&self, workspace: &Workspace) -> Option<PathBuf> {
        Some(self.store(workspace).lookup(&self.entry(), self.key())?.join(self.recipe.form.file()))
    }

    /// The built file; built first if the store lacks it. `say` gets lines worth telling.
    ///
    /// # Errors
    /// When packages cannot be fetched or a step of building fails.
    pub fn build(
        &self,
        workspace: &Workspace,
        mirror: Option<&str>,
        say: &mut dyn FnMut(&str),
    ) -> Result<PathBuf> {
        let entry = self.store(workspace).entry(&self.entry(), self.key(), |at| {
            say(&format!(
                "image {}: building a Debian {} tree (about half a minute)",
                self.name, self.recipe.suite
            ));
            let mirror = Mirror::find(mirror)?;
            let tar = at.join("root.tar");
            tool::output(&mut self.mmdebstrap(&mirror, &tar))?;
            if self.recipe.form == Form::Ext4 {
                ext4_of_tar(&tar, &at.join(Form::Ext4.file()))?;
            }
            let hash = sha256_of(&at.join(self.recipe.form.file()))?;
            fs::write(at.join(HASH), hash).context("writing the image's hash")
        });
        Ok(entry
            .with_context(|| format!("building the image {}", self.name))?
            .join(self.recipe.form.file()))
    }

    /// The hash of the built file, and what it was when it was built.
    ///
    /// # Errors
    /// When it is not built, or cannot be read.
    pub fn hashes(&self, workspace: &Workspace) -> Result<(String, String)> {
        let file = self.built(workspace).with_context(|| format!("{} is not built", self.name))?;
        let recorded = file.with_file_name(HASH);
        let recorded = fs::read_to_string(&recorded)
            .with_context(|| format!("reading {}", recorded.display()))?;
        Ok((sha256_of(&file)?, recorded))
    }

    fn mmdebstrap(&self, mirror: &Mirror, tar: &Path) -> Command {
        let mut command = tool::command("mmdebstrap");
        command.args([
            "--variant=minbase",
            "--format=tar",
            "--aptopt=APT::Install-Recommends \"false\"",
        ]);
        command.args([
            "--aptopt=Acquire::Languages \"none\"",
            "--aptopt=Acquire::Retries \"3\"",
            "--dpkgopt=force-unsafe-io",
        ]);
        command.args(EXCLUDED.map(|path| format!("--dpkgopt=path-exclude={path}")));
        if !self.recipe.packages.is_empty() {
            command.arg(format!("--include={}", self.recipe.packages.join(",")));
        }
        command.arg(&self.recipe.suite).arg(tar);
        command.args(mirror.sources(&self.recipe.suite));
        command
    }

    fn store(&self, workspace: &Workspace) -> Store {
        Store::at(workspace.vm_dir().join("store"))
    }

    fn entry(&self) -> String {
        format!("image-{}", self.name)
    }

    fn key(&self) -> Key {
        Key::of("image").with(&self.text).with(tool_versions())
    }
}

/// Turns a tar into an image: unpacked where its owners can be kept, then given to mkfs.ext4. The tar goes away.
fn ext4_of_tar(tar: &Path, image: &Path) -> Result<()> {
    let bytes = fs::metadata(tar).with_context(|| format!("looking at {}", tar.display()))?.len();
    // Roughly one file in 10 KiB of a Debian tree; twice that is room enough.
    let inodes = bytes / 5120 + 4096;
    let script = "set -e; mkdir \"$1.d\"; tar -C \"$1.d\" -xf \"$1\" --numeric-owner --xattrs --xattrs-include='*' --exclude='./dev/*'; \
                  mkfs.ext4 -q -F -m 0 -O '^has_journal,^resize_inode' -N \"$4\" -d \"$1.d\" \"$2\" \"$3k\"; \
                  rm -rf \"$1\" \"$1.d\"";
    let mut command = in_namespace_unless_root("sh");
    command
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .args(["-c", script, "sh"])
        .arg(tar)
        .arg(image);
    command.arg(image_kib(bytes, inodes).to_string()).arg(inodes.to_string());
    tool::output(&mut command).map(drop).context("making an ext4 image of the tree")
}

/// Unpacks a tree for a person into a directory that does not exist yet. Owners need root.
///
/// # Errors
/// When the directory exists or tar fails.
pub fn unpack(tar: &Path, into: &Path) -> Result<()> {
    fs::create_dir(into).with_context(|| format!("making {}", into.display()))?;
    let mut command = tool::command("tar");
    command.arg("-C").arg(into).arg("-xf").arg(tar).args(["--numeric-owner", "--exclude=./dev/*"]);
    tool::output(&mut command)
        .map(drop)
        .with_context(|| format!("unpacking into {}", into.display()))
}

/// The program as it is for root, and as root of a user namespace with the user's subordinate ids otherwise.
fn in_namespace_unless_root(program: &str) -> Command {
    if rustix::process::geteuid().is_root() {
        return tool::command(program);
    }
    let mut command = tool::command("unshare");
    command.args(["--map-auto", "--map-root-user", "--", program]);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recipes_of_this_checkout_can_be_read() {
        let all = recipes(&Workspace::find()).unwrap();
        assert!(all.iter().any(|named| named.name == "guest" && named.recipe.form == Form::Ext4));
    }

    #[test]
    fn the_whole_recipe_decides_the_name_in_the_store() {
        let recipe = Recipe { suite: "s".to_owned(), form: Form::Tar, packages: Vec::new() };
        let one = Named { name: "n".to_owned(), recipe, text: "a".to_owned() };
        let two = Named { text: "b".to_owned(), ..one.clone() };
        assert_ne!(one.key().hex(), two.key().hex());
    }
}
