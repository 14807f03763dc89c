//! `cargo xtask images`: the Debian trees that guests and people use.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::artifact::Store;
use crate::userland::{self, Form, Named};
use crate::{tool, workspace::Workspace};

use super::say;

/// What to do with images.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// List recipes and what the store holds
    List,
    /// Build these images, or all
    Build {
        /// Names of recipes
        names: Vec<String>,
    },
    /// Check that built images are sound
    Verify,
    /// Remove what was not used for some days
    Gc {
        /// Age in days
        #[arg(long, default_value_t = 14)]
        days: u64,
    },
    /// Unpack an image's tree into a new directory, for `rspawn -D`
    Tree {
        /// Name of a recipe with form = "tar"
        name: String,
        /// Directory to make
        dir: PathBuf,
    },
}

/// Does it.
///
/// # Errors
/// When a recipe is unknown, building fails, or a built image is unsound.
pub fn run(workspace: &Workspace, mirror: Option<&str>, action: &Action) -> Result<()> {
    let store = Store::at(workspace.vm_dir().join("store"));
    match action {
        Action::List => {
            for named in userland::recipes(workspace)? {
                let state = if named.built(workspace).is_some() { "built" } else { "not built" };
                println!("{:<10} {} {state}", named.name, named.recipe.suite);
            }
            for stored in store.list()? {
                println!("  {:<45} {:>6} MiB", stored.name, stored.size_bytes >> 20);
            }
        }
        Action::Build { names } => {
            let wanted = if names.is_empty() {
                userland::recipes(workspace)?
            } else {
                names.iter().map(|name| Named::find(workspace, name)).collect::<Result<_>>()?
            };
            for named in wanted {
                println!("{}", named.build(workspace, mirror, &mut say)?.display());
            }
        }
        Action::Verify => verify(workspace)?,
        Action::Gc { days } => {
            for name in store.collect_garbage(Duration::from_secs(days * 24 * 3600))? {
                println!("removed {name}");
            }
        }
        Action::Tree { name, dir } => {
            let named = Named::find(workspace, name)?;
            ensure!(named.recipe.form == Form::Tar, "the image \"{name}\" is not kept as a tree");
            userland::unpack(&named.build(workspace, mirror, &mut say)?, dir)?;
            println!("{}", dir.display());
        }
    }
    Ok(())
}

fn verify(workspace: &Workspace) -> Result<()> {
    for named in userland::recipes(workspace)? {
        let Some(file) = named.built(workspace) else {
            println!("{:<10} not built", named.name);
            continue;
        };
        match named.recipe.form {
            Form::Ext4 => tool::output(tool::command("e2fsck").args(["-fn"]).arg(&file)).map(drop),
            Form::Tar => tool::output(tool::command("tar").arg("-tf").arg(&file)).map(drop),
        }
        .with_context(|| format!("verifying the image {}", named.name))?;
        let (found, recorded) = named.hashes(workspace)?;
        ensure!(
            found == recorded,
            "the image {} is not what was built: sha256 {found}, not {recorded}\nhint: remove {}",
            named.name,
            file.display()
        );
        println!("{:<10} sound, sha256 {found}", named.name);
    }
    Ok(())
}
