//! How is the manual page made? Options and keys come from the table; what is written here is what no table has.

use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};
use rspawn::cli;
use rspawn::options::{self, Group, Opt, Takes, Trust};

const DESCRIPTION: &[&str] = &[
    "rspawn runs a command, a shell or an init in a container: a directory tree that looks like a machine of its own. \
     It takes the options and settings files of systemd-nspawn(1) and needs no systemd, no daemon and no set-up.",
    "Options end at the first word that is none, or at \"--\"; all that follows belongs to the container. A long option \
     may be cut short as long as it is unambiguous. Of an option that is given twice the last one counts, unless it \
     adds to a list. An empty value takes back what was said before, where the option's value can be unset.",
    "Without -U or --private-users= a container is no boundary against root inside it.",
    "What systemd-nspawn has and this version has not is refused by its name, rather than passed over; README.md lists it.",
];

const SETTINGS: &[&str] = &[
    "A file MACHINE.nspawn says the same as options do, in sections with keys; see systemd.nspawn(5). It is looked for in \
     /etc/systemd/nspawn, then in /run/systemd/nspawn, then next to the tree; the first that exists counts. The \
     command line wins over it, unless --settings=override is given.",
    "A file next to the tree may come with the tree, so it can only say what takes rights away or concerns the inside of \
     the container; all other keys are ignored there with a warning. --settings=trusted lets all keys count.",
    "Parameters= of [Exec] holds the words that follow the options on the command line, and is accepted from any file.",
    "A line that is wrong is told with its number and ignored. A file that is no regular file, or larger than 1 MiB, is \
     refused.",
];

/// What a status means, and in which mode.
const STATUSES: &[(&str, &str)] = &[
    ("0 to 255", "The status of the command, or of the init when the container was shut down (0)."),
    (
        "1",
        "The container could not be started, or was killed by a signal. One line on the standard error says what was being \
         done, a second one begins with \"hint:\" and says what can be done about it.",
    ),
    ("125", "With --exit-mode=shell: the container could not be started."),
    ("126", "With --exit-mode=shell: the command was found and cannot be executed."),
    ("127", "With --exit-mode=shell: the command was not found."),
    ("128+n", "With --exit-mode=shell: the container was killed by signal n."),
    (
        "133",
        "Kept for the service manager: a command that ends with it counts as 1, unless --exit-mode=shell is given.",
    ),
];

const VARIABLES: &[(&str, &str)] = &[
    (
        "TERM, COLORTERM, NO_COLOR",
        "Passed on to a command at a terminal. Nothing else of the caller's environment is, but what --setenv=NAME asks for.",
    ),
    ("LISTEN_FDS, LISTEN_PID", "Sockets of a service manager, see sd_listen_fds(3)."),
    (
        "TMPDIR",
        "Where the layer of --ephemeral is kept that cannot be next to the tree, instead of /var/tmp.",
    ),
    (
        "XDG_CONFIG_HOME, XDG_RUNTIME_DIR",
        "With --user: where settings files are looked for, below systemd/nspawn.",
    ),
    (
        "CREDENTIALS_DIRECTORY",
        "Where --load-credential= looks for a relative path: the service manager's credentials for rspawn.",
    ),
    ("SYSTEMD_SECCOMP", "With a value of 0 system calls are not filtered."),
    ("SYSTEMD_SUPPRESS_SYNC", "The default of --suppress-sync=."),
    ("SYSTEMD_NSPAWN_LOCK", "With a value of 0 the tree is not locked."),
    (
        "SYSTEMD_NSPAWN_CHECK_OS_RELEASE",
        "With a value of 0 a tree without an os-release file can be booted.",
    ),
    ("SYSTEMD_NSPAWN_USE_CGNS", "With a value of 0 the container has no cgroup namespace."),
    ("SYSTEMD_NSPAWN_CONTAINER_SERVICE", "What the variable \"container\" says inside."),
    (
        "SYSTEMD_NSPAWN_API_VFS_WRITABLE",
        "With a value of 1 /sys and the kernel's settings can be written, with \"network\" those of the network.",
    ),
    ("SYSTEMD_NSPAWN_TMPFS_TMP", "With a value of 0 nothing is mounted on /tmp."),
    ("SYSTEMD_NSPAWN_SHARE_NS_IPC", "With a value of 1 the container has no IPC namespace."),
    ("SYSTEMD_NSPAWN_SHARE_NS_PID", "With a value of 1 the container has no PID namespace."),
    ("SYSTEMD_NSPAWN_SHARE_NS_UTS", "With a value of 1 the container has the host's host name."),
    ("SYSTEMD_NSPAWN_SHARE_SYSTEM", "With a value of 1 the three of them, as --share-system says."),
    ("SYSTEMD_LOG_LEVEL", "How much is told, where neither --quiet nor --verbose is given."),
    (
        "RSPAWN_STOP_AT",
        "For tests: rspawn stops itself, as SIGSTOP does, where a throw-away layer, template or device has come so far.",
    ),
];

const FILES: &[(&str, &str)] = &[
    (
        "/etc/systemd/nspawn/MACHINE.nspawn, /run/systemd/nspawn/MACHINE.nspawn",
        "Settings files of the administrator.",
    ),
    (
        "/var/lib/machines, /usr/local/lib/machines, /usr/lib/machines, /var/lib/container",
        "Where --machine= looks for a tree when there is no --directory=.",
    ),
    (
        "/run/systemd/nspawn/locks, .#NAME.lck next to the tree",
        "Locks that systemd-nspawn honours as well.",
    ),
    (
        ".#NAME… next to the tree, or in /var/tmp",
        "Layers of --ephemeral. Those of killed runs are removed by the next run on the same tree, or by --cleanup.",
    ),
];

const EXAMPLES: &[(&str, &str)] = &[
    ("rspawn -x -D /", "A shell in a throw-away layer over the running system."),
    ("rspawn -q -x -D / apt-get -s upgrade", "A command; its exit status is that of rspawn."),
    ("echo data | rspawn -q -x -D / tr a-z A-Z", "Streams are the command's own."),
    ("rspawn -x -D / --explain", "What would be done, and every mount; needs no root."),
    (
        "rspawn -D /srv/tree --read-only --private-network --bind=/srv/data:/mnt make -C /mnt",
        "A command that can change nothing but one directory of the host, and reach no network.",
    ),
];

const SEE_ALSO: &str =
    "systemd-nspawn(1), systemd.nspawn(5), namespaces(7), capabilities(7), bwrap(1), chroot(1)";

/// The page, as roff.
pub(crate) fn page() -> String {
    let command = cli::command();
    let man = Man::new(command).title("RSPAWN").section("1").manual("User Commands");
    let mut bytes = Vec::new();
    man.render_title(&mut bytes).unwrap();
    man.render_name_section(&mut bytes).unwrap();
    let mut roff = Roff::new();
    roff.control("SH", ["SYNOPSIS"]);
    roff.text([
        bold("rspawn"),
        roman(" [OPTIONS...] ["),
        italic("COMMAND"),
        roman(" ["),
        italic("ARGUMENTS"),
        roman("...]]"),
    ]);
    roff.control("br", []);
    roff.text([
        bold("rspawn --boot"),
        roman(" [OPTIONS...] ["),
        italic("ARGUMENTS"),
        roman("...]"),
    ]);
    section(&mut roff, "DESCRIPTION", DESCRIPTION);
    options(&mut roff);
    section(&mut roff, "SETTINGS FILES", SETTINGS);
    table(&mut roff, "EXIT STATUS", STATUSES);
    table(&mut roff, "ENVIRONMENT", VARIABLES);
    table(&mut roff, "FILES", FILES);
    table(&mut roff, "EXAMPLES", EXAMPLES);
    section(&mut roff, "SEE ALSO", &[SEE_ALSO]);
    bytes.extend(roff.render().into_bytes());
    String::from_utf8(bytes).unwrap()
}

fn section(roff: &mut Roff, title: &str, paragraphs: &[&str]) {
    roff.control("SH", [title]);
    for paragraph in paragraphs {
        roff.control("PP", []);
        roff.text([roman(*paragraph)]);
    }
}

fn table(roff: &mut Roff, title: &str, rows: &[(&str, &str)]) {
    roff.control("SH", [title]);
    for (word, text) in rows {
        entry(roff, vec![bold(*word)], &[text]);
    }
}

fn entry(roff: &mut Roff, term: Vec<Inline>, texts: &[&str]) {
    roff.control("TP", []);
    roff.text(term);
    for text in texts {
        roff.text([roman(*text)]);
    }
}

fn options(roff: &mut Roff) {
    roff.control("SH", ["OPTIONS"]);
    let mut group: Option<Group> = None;
    for option in options::options().filter(|option| !option.hidden) {
        if group != Some(option.group) {
            roff.control("SS", [option.group.title()]);
            if group.is_none() {
                entry(
                    roff,
                    vec![bold("-h"), roman(", "), bold("--help")],
                    &["Print a short help."],
                );
                entry(
                    roff,
                    vec![bold("--version")],
                    &["Print the version and the compiled-in features."],
                );
            }
            group = Some(option.group);
        }
        let help = format!("{}.", option.help);
        entry(roff, term(option), &[&help, &keys(option)]);
    }
}

fn term(option: &Opt) -> Vec<Inline> {
    let mut term = Vec::new();
    if let Some(letter) = option.short {
        term.push(bold(format!("-{letter}")));
    }
    if option.long.is_empty() {
        return term;
    }
    if !term.is_empty() {
        term.push(roman(", "));
    }
    term.push(bold(option.name()));
    match option.takes {
        Takes::Nothing => {}
        Takes::Value(value) => term.extend([roman("="), italic(value)]),
        Takes::Optional(value) | Takes::OptionalWord(value) => {
            term.extend([roman("[="), italic(value), roman("]")]);
        }
    }
    term
}

/// The keys that mean the same, and from whom they count.
fn keys(option: &Opt) -> String {
    let told = option.keys.iter().map(|key| {
        let trust = match key.trust {
            Trust::Privileged => "",
            Trust::Anyone => ", also in a file next to the tree",
            Trust::AnyoneDenying => ", if it takes away also in a file next to the tree",
        };
        format!("[{}] {}={trust}", key.section.name(), key.name)
    });
    let told: Vec<String> = told.collect();
    match told.is_empty() {
        true => String::new(),
        false => format!("In settings files: {}.", told.join("; ")),
    }
}
