//! What does the payload find in its environment?

use std::ffi::{OsStr, OsString};

use super::process;
use crate::console::mode::Wiring;
use crate::credentials;
use crate::host::Host;
use crate::settings::Settings;
use crate::settings::value::VariableName;
use crate::spec::{Knobs, Start};

/// The PATH of a payload (ENV-02).
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The locale of a payload that is no init: one that every tree has (E-09).
const LANG: &str = "C.UTF-8";

/// What a payload may know of the host's system, by key of os-release(5); it is told as `container_host_KEY`.
const TOLD: [(&str, &str); 4] = [
    ("ID", "container_host_id"),
    ("VERSION_ID", "container_host_version_id"),
    ("BUILD_ID", "container_host_build_id"),
    ("VARIANT_ID", "container_host_variant_id"),
];

/// From scratch; of the caller's only what a terminal is like, and what it asks for by name (ENV-01…05, E-04, E-09).
/// A later one of a name takes the place of an earlier one.
pub(super) fn of_payload(
    settings: &Settings,
    host: &Host,
    knobs: &Knobs,
    start: &Start,
    wiring: &Wiring,
) -> Vec<(String, String)> {
    let mut variables = Vec::new();
    let mut set = |name: &str, value: String| {
        variables.retain(|(old, _): &(String, String)| old != name);
        variables.push((name.to_owned(), value));
    };
    let of_caller = |name: &str| (host.variable)(name).and_then(|value| value.into_string().ok());
    set("PATH", PATH.to_owned());
    set("container", knobs.service.clone());
    if wiring.pty {
        for name in ["TERM", "COLORTERM", "NO_COLOR"] {
            of_caller(name).into_iter().for_each(|value| set(name, value));
        }
    } else {
        // There is no terminal, or one that the payload does not know to be there.
        set("TERM", "dumb".to_owned());
    }
    if !matches!(start, Start::Init { .. }) {
        set("LANG", LANG.to_owned());
    }
    let os_release = (host.os_release)().unwrap_or_default();
    for (key, name) in TOLD {
        assigned(&os_release, key).into_iter().for_each(|value| set(name, value));
    }
    for (name, value) in process::variables(settings, host) {
        set(name, value);
    }
    if settings.credentials.is_said() {
        set("CREDENTIALS_DIRECTORY", credentials::PLACE.to_owned());
    }
    if let Some(words) = settings.parameters.value().filter(|_| matches!(start, Start::Init { .. }))
    {
        words.iter().filter_map(|word| of_boot(word)).for_each(|(name, value)| set(&name, value));
    }
    for entry in settings.environment.values() {
        let name = entry.name.to_string();
        let value = match &entry.value {
            Some(value) => value.clone(),
            // Empty where the caller has none, as with systemd-nspawn: scripts pass http_proxy on so.
            None => of_caller(&name).unwrap_or_default(),
        };
        set(&name, value);
    }
    variables
}

/// The arguments of an init, without those that become its environment (E-02).
pub(super) fn arguments(words: Vec<OsString>) -> Vec<OsString> {
    words.into_iter().filter(|word| of_boot(word).is_none()).collect()
}

/// The variable that a word of a kernel command line stands for, as the kernel itself would make one of it: `KEY=VALUE`
/// where the key has no dot, since that would name a parameter of a module. Dashes become underscores (E-02). An
/// option such as `--unit=NAME` stays one.
fn of_boot(word: &OsStr) -> Option<(String, String)> {
    let (key, value) = word.to_str()?.split_once('=')?;
    if key.starts_with('-') {
        return None;
    }
    let name: VariableName = key.replace('-', "_").parse().ok()?;
    Some((name.to_string(), value.to_owned()))
}

/// The value of a key in the text of an os-release file: plain, or quoted as a shell would have it (os-release(5)). What
/// cannot be an environment variable's value is left out.
fn assigned(text: &str, key: &str) -> Option<String> {
    let mut lines = text.lines().filter_map(|line| line.trim().split_once('='));
    let (_, value) = lines.rfind(|(name, _)| *name == key)?;
    let value = match value.chars().next() {
        Some(quote @ ('"' | '\'')) => value.strip_prefix(quote)?.strip_suffix(quote)?,
        _ => value,
    };
    let mut plain = String::new();
    let mut chars = value.chars();
    while let Some(char) = chars.next() {
        plain.push(if char == '\\' { chars.next()? } else { char });
    }
    (!plain.is_empty() && !plain.contains('\0')).then_some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    /// E-02.
    #[rstest]
    #[case("foo=1", Some(("foo", "1")))]
    #[case("a-b=2=3", Some(("a_b", "2=3")))]
    #[case("empty=", Some(("empty", "")))]
    #[case("module.option=3", None)]
    #[case("--unit=rescue.target", None)]
    #[case("=x", None)]
    #[case("quiet", None)]
    #[case("1st=x", None)]
    fn a_word_of_a_kernel_command_line_is_a_variable_or_an_argument(
        #[case] word: &str,
        #[case] expected: Option<(&str, &str)>,
    ) {
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(of_boot(word.as_ref()), expected);
        let kept = arguments(vec![word.into()]);
        assert_eq!(kept.is_empty(), expected.is_some());
    }

    /// E-09.
    #[rstest]
    #[case("ID=debian\nVERSION_ID=\"12\"\n", "ID", Some("debian"))]
    #[case("ID=debian\nVERSION_ID=\"12\"\n", "VERSION_ID", Some("12"))]
    #[case("NAME='An OS'", "NAME", Some("An OS"))]
    #[case(r#"NAME="a \"b\" \$c""#, "NAME", Some("a \"b\" $c"))]
    #[case("#ID=no\nID=a\nID=b", "ID", Some("b"))]
    #[case("ID=", "ID", None)]
    #[case("ID=\"open", "ID", None)]
    #[case("MYID=x", "ID", None)]
    fn a_value_of_os_release_is_unquoted(
        #[case] text: &str,
        #[case] key: &str,
        #[case] expected: Option<&str>,
    ) {
        assert_eq!(assigned(text, key).as_deref(), expected);
    }
}
