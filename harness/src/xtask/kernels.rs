//! `cargo xtask kernels`: the kernels that guests run, and their lock file.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::apt::Mirror;
use crate::kernels::{self, Row};
use crate::local_kernel;
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

/// The rows of these names, in which `*` stands for anything, and of `path:PATH` ([`local_kernel`]).
///
/// # Errors
/// When there is no such row, or no kernel at such a path.
pub fn chosen(rows: &[Row], names: &[String]) -> Result<Vec<Row>> {
    let (paths, names): (Vec<&String>, Vec<&String>) =
        names.iter().partition(|name| name.starts_with(local_kernel::PREFIX));
    for name in &names {
        let known = rows.iter().map(|row| row.name.as_str()).collect::<Vec<_>>().join(", ");
        ensure!(
            rows.iter().any(|row| fits(name, &row.name)),
            Blame::Usage(format!("there is no kernel \"{name}\"\nhint: there are {known}"))
        );
    }
    let named = |row: &&Row| names.iter().any(|name| fits(name, &row.name));
    let mut found: Vec<Row> = rows.iter().filter(named).cloned().collect();
    for name in paths {
        let path = Path::new(name.trim_start_matches(local_kernel::PREFIX));
        let row = local_kernel::row(name, path);
        found.push(row.with_context(|| Blame::Usage(format!("choosing {name}")))?);
    }
    Ok(found)
}

/// Whether a name is what the pattern says.
fn fits(pattern: &str, name: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else { return pattern == name };
    let Some(rest) = name.strip_prefix(before) else { return false };
    (0..=rest.len()).any(|at| rest.is_char_boundary(at) && fits(after, &rest[at..]))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::fits;

    #[rstest]
    #[case("debian-6.1", "debian-6.1", true)]
    #[case("debian-6.1", "debian-6.12", false)]
    #[case("debian-6.*", "debian-6.12", true)]
    #[case("*-6*2", "debian-6.12", true)]
    #[case("*", "debian-sid", true)]
    #[case("debian-*1", "debian-sid", false)]
    fn a_star_stands_for_anything(#[case] pattern: &str, #[case] name: &str, #[case] fit: bool) {
        assert_eq!(fits(pattern, name), fit);
    }
}
