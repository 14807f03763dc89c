//! Which credentials does the container get?

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::credentials::{Source, Wanted, of_ours};
use crate::errors::hinted;
use crate::host::Host;
use crate::settings::Settings;
use crate::settings::value::CredentialValue;

/// In the order in which they were given; each id once (T-05).
pub(super) fn credentials(settings: &Settings, host: &Host) -> Result<Vec<Wanted>> {
    let mut all: Vec<Wanted> = Vec::new();
    for credential in settings.credentials.values() {
        let id = credential.id.clone();
        ensure!(
            all.iter().all(|other| other.id != id),
            hinted(
                format!("--set-credential={id}: there are two credentials of this name"),
                "--set-credential= and --load-credential= share their names",
            )
        );
        let source = match &credential.value {
            CredentialValue::Bytes(bytes) => Source::Value(bytes.clone()),
            CredentialValue::File(path) if path.is_absolute() => Source::Path(path.clone()),
            CredentialValue::File(name) => {
                let ours = (host.variable)("CREDENTIALS_DIRECTORY").map(PathBuf::from);
                let found = of_ours(name, ours);
                Source::Path(found.with_context(|| format!("--load-credential={id}"))?)
            }
        };
        all.push(Wanted { id, source });
    }
    Ok(all)
}
