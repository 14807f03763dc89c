//! Are the manual page and the completions whole and true? Both are made from the table of options; `--write DIR` keeps
//! them (`cargo xtask docs`).
//!
//! A program without libtest, because it has that second use. It is no part of the launcher, whose size and start
//! it must not cost anything.
#![allow(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

mod man;

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;
use std::process::ExitCode;

use clap::ValueHint;
use clap::builder::PossibleValuesParser;
use clap_complete::Shell;
use rspawn::cli;
use rspawn::options::{self, Takes};

/// A file that is made from the table.
struct Page {
    /// Where below the directory that is written to; as packages place it below /usr/share.
    path: &'static str,
    text: String,
}

fn pages() -> Vec<Page> {
    let completion = |path, shell: Shell| {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut with_values(), "rspawn", &mut text);
        Page { path, text: String::from_utf8(text).unwrap() }
    };
    vec![
        Page { path: "man/man1/rspawn.1", text: man::page() },
        completion("bash-completion/completions/rspawn", Shell::Bash),
        completion("zsh/site-functions/_rspawn", Shell::Zsh),
        completion("fish/vendor_completions.d/rspawn.fish", Shell::Fish),
    ]
}

/// The command line with what its values can be: words where the table knows them all, else paths. Only completions
/// need that, so it is not in the launcher.
fn with_values() -> clap::Command {
    let mut command = cli::command();
    for option in options::options().filter(|option| !option.long.is_empty()) {
        let value = match option.takes {
            Takes::Nothing => continue,
            Takes::Value(value) | Takes::Optional(value) | Takes::OptionalWord(value) => value,
        };
        // Names of signals, limits and capabilities are parts of a value or lists.
        let words = option.words.filter(|_| matches!(value, "MODE" | "FORMAT" | "ARCH"));
        command = command.mut_arg(option.long, |argument| match words {
            Some(words) => {
                // clap keeps names for good; so does this program, which ends soon.
                let words = words().into_iter().map(|word| -> &'static str { word.leak() });
                argument.value_parser(PossibleValuesParser::new(words))
            }
            None if option.long == "directory" => argument.value_hint(ValueHint::DirPath),
            None if value.contains("PATH") => argument.value_hint(ValueHint::AnyPath),
            None => argument,
        });
    }
    command
}

const CHECKS: &[(&str, fn())] = &[
    ("every_page_has_every_option", every_page_has_every_option),
    ("the_manual_has_its_sections_and_groups", the_manual_has_its_sections_and_groups),
    ("the_manual_names_every_key_of_settings_files", the_manual_names_every_key),
    ("the_manual_names_every_variable_that_is_read", the_manual_names_every_variable),
    ("completions_know_the_words_of_a_value", completions_know_the_words_of_a_value),
    ("the_manual_names_every_place_that_is_looked_at", the_manual_names_every_place),
];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [option, dir] = words.as_slice()
        && option == "--write"
    {
        for page in pages() {
            let path = Path::new(dir).join(page.path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, page.text).unwrap();
            println!("{}", path.display());
        }
        return ExitCode::SUCCESS;
    }
    let says = |word: &str| words.iter().any(|given| given == word);
    // How nextest asks for a list, and then for one test at a time. None is ignored.
    if says("--list") {
        let listed = CHECKS.iter().filter(|_| !says("--ignored"));
        listed.for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let chosen: Vec<_> = CHECKS.iter().filter(|(name, _)| !says("--exact") || says(name)).collect();
    println!("\nrunning {} tests", chosen.len());
    let mut failed = 0;
    for (name, check) in &chosen {
        let result = catch_unwind(check);
        println!("test {name} ... {}", if result.is_ok() { "ok" } else { "FAILED" });
        failed += usize::from(result.is_err());
    }
    ExitCode::from(u8::try_from(failed).unwrap())
}

/// As a reader sees it: hyphens are written `\-` in the source of a manual page.
fn manual() -> String {
    man::page().replace("\\-", "-").replace("\\fB", "").replace("\\fI", "").replace("\\fR", "")
}

fn every_page_has_every_option() {
    for page in pages() {
        let text = page.text.replace("\\-", "-");
        for option in options::options().filter(|option| !option.hidden) {
            // fish gives names without their hyphens.
            let name =
                if page.path.contains("fish") { option.long.to_owned() } else { option.name() };
            assert!(text.contains(&name), "{} lacks {}", page.path, option.name());
        }
    }
}

fn the_manual_has_its_sections_and_groups() {
    let text = manual();
    for section in [
        "NAME",
        "SYNOPSIS",
        "DESCRIPTION",
        "OPTIONS",
        "SETTINGS FILES",
        "EXIT STATUS",
        "ENVIRONMENT",
        "FILES",
        "EXAMPLES",
        "SEE ALSO",
    ] {
        let line = text.lines().any(|line| line.replace('"', "") == format!(".SH {section}"));
        assert!(line, "no section {section}");
    }
    for option in options::options().filter(|option| !option.hidden) {
        let title = format!(".SS {}", option.group.title());
        assert!(text.lines().any(|line| line.replace('"', "") == title), "no group {title}");
    }
}

fn the_manual_names_every_key() {
    let text = manual();
    for assignment in options::assignments() {
        let name = format!("{}=", assignment.key.name);
        assert!(text.contains(&name), "the manual lacks {name}");
    }
}

fn completions_know_the_words_of_a_value() {
    for page in pages().iter().filter(|page| !page.path.starts_with("man")) {
        for word in ["autopipe", "copy-uplink", "override", "x86-64", "json"] {
            assert!(page.text.contains(word), "{} lacks {word}", page.path);
        }
    }
}

/// The sources of the launcher, tests in them left out.
fn sources() -> Vec<String> {
    let mut open = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    let mut texts = Vec::new();
    while let Some(dir) = open.pop() {
        for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                open.push(path);
            } else {
                let text = fs::read_to_string(&path).unwrap();
                texts.push(text.split("#[cfg(test)]").next().unwrap().to_owned());
            }
        }
    }
    texts
}

fn the_manual_names_every_variable() {
    let text = manual();
    let mut names = ["TERM", "LISTEN_FDS", "CREDENTIALS_DIRECTORY"].map(str::to_owned).to_vec();
    for source in sources() {
        for prefix in ["\"SYSTEMD_", "\"XDG_", "\"TMPDIR", "\"NO_COLOR", "\"COLORTERM", "\"RSPAWN_"]
        {
            for (at, _) in source.match_indices(prefix) {
                let rest = &source[at + 1..];
                let name = &rest[..rest.find('"').unwrap()];
                let whole = name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
                names.extend(whole.then(|| name.to_owned()));
            }
        }
    }
    assert!(names.len() > 5, "the search found nothing");
    for name in names {
        assert!(text.contains(&name), "the manual lacks the variable {name}");
    }
}

fn the_manual_names_every_place() {
    let text = manual();
    for place in [
        "/etc/systemd/nspawn",
        "/run/systemd/nspawn",
        "/var/lib/machines",
        "/usr/local/lib/machines",
        "/usr/lib/machines",
        "/var/lib/container",
        "/run/systemd/nspawn/locks",
        "/var/tmp",
    ] {
        assert!(sources().iter().any(|source| source.contains(place)), "nobody looks at {place}");
        assert!(text.contains(place), "the manual lacks {place}");
    }
}
