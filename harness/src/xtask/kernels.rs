//! `cargo xtask kernels`: the kernels that guests run, and their lock file.

use anyhow::{Result, ensure};

use crate::apt::Mirror;
use crate::kernels::{self, Row};
use crate::report::summary::Blame;
use crate::workspace::Workspace;

use super::say;

/// What to do with kernels.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// List the table with its pins
    List,
    /// Fetch and unpack these kernels, or the default one
    Build {
        /// Names of rows
        names: Vec<String>,
    },
    /// Pin the newest versions that the mirror has, of these rows or of all
    Update {
        /// Names of rows
        names: Vec<String>,
    },
}

/// Does it.
///
/// # Errors
/// When a name is unknown, or the mirror cannot be used.
pub fn run(workspace: &Workspace, mirror: Option<&str>, action: &Action) -> Result<()> {
    let rows = kernels::rows(workspace)?;
    let mut lock = kernels::read_lock(workspace)?;
    match action {
        Action::List => {
            for row in rows {
                let pin = lock.kernels.get(&row.name).and_then(|locked| locked.packages.first());
                let pin =
                    pin.map_or_else(|| "not pinned".to_owned(), |image| image.version.clone());
                println!("{:<12} {:<20} {pin}", row.name, row.suite);
            }
        }
        Action::Build { names } => {
            let wanted =
                if names.is_empty() { vec![rows[0].clone()] } else { chosen(&rows, names)? };
            for row in wanted {
                let kernel = kernels::kernel(workspace, &row, mirror, &mut say)?;
                println!("{:<12} {}", kernel.name, kernel.release);
            }
        }
        Action::Update { names } => {
            let wanted = if names.is_empty() { rows.clone() } else { chosen(&rows, names)? };
            let mirror = Mirror::find(mirror)?;
            for row in wanted {
                let newest = kernels::newest(workspace, &mirror, &row)?;
                println!("{:<12} {}", row.name, newest.packages[0].version);
                lock.kernels.insert(row.name, newest);
            }
            kernels::write_lock(workspace, &lock)?;
        }
    }
    Ok(())
}

/// The rows of these names.
///
/// # Errors
/// When there is no such row.
pub fn chosen(rows: &[Row], names: &[String]) -> Result<Vec<Row>> {
    for name in names {
        let known = rows.iter().map(|row| row.name.as_str()).collect::<Vec<_>>().join(", ");
        ensure!(
            rows.iter().any(|row| row.name == *name),
            Blame::Usage(format!("there is no kernel \"{name}\"\nhint: there are {known}"))
        );
    }
    Ok(rows.iter().filter(|row| names.contains(&row.name)).cloned().collect())
}
