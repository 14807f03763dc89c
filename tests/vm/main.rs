//! The suite: one static binary that is a guest's process 1, its agent, its cases and their probe.
//!
//! A file per topic, a table of cases per file, and the list of tables here.

use std::process::ExitCode;

use harness::guest::suite::Suite;

mod bind;
mod bind_user;
mod boot;
mod caps;
mod cleanup;
mod combined;
mod console;
mod copy;
mod credentials;
mod delegate;
mod devices;
mod directory;
mod environment;
mod ephemeral;
mod ephemeral_tmpfs;
mod errors;
mod exact;
mod exit;
mod explain;
mod halted;
mod host;
mod hostile;
mod idmap;
mod image;
mod image_boot;
mod image_cleanup;
mod image_ephemeral;
mod image_fs;
mod image_host;
mod image_mutated;
mod image_upkeep;
mod image_usr;
mod image_verity;
mod integration;
mod journal;
mod leaks;
mod limits;
mod locks;
mod loopfs;
mod mounts;
mod notify;
mod ostree;
mod outside;
mod overlay;
mod own;
mod pivot;
mod process;
mod quota;
mod refused;
mod rootless;
mod runhost;
mod security;
mod settings;
mod snapshot;
mod stacked;
mod status;
mod template;
mod terminal;
mod tmpfs;
mod user;
mod userns;
mod volatile;

const SUITE: Suite = Suite {
    tables: &[
        devices::CASES,
        directory::CASES,
        exit::CASES,
        boot::CASES,
        notify::CASES,
        process::CASES,
        status::CASES,
        mounts::CASES,
        caps::CASES,
        bind::CASES,
        bind_user::CASES,
        overlay::CASES,
        own::CASES,
        tmpfs::CASES,
        ephemeral::CASES,
        idmap::CASES,
        ephemeral_tmpfs::CASES,
        snapshot::CASES,
        template::CASES,
        copy::CASES,
        quota::CASES,
        image::CASES,
        image_boot::CASES,
        image_ephemeral::CASES,
        image_cleanup::CASES,
        image_fs::CASES,
        image_host::CASES,
        image_mutated::CASES,
        image_upkeep::CASES,
        image_usr::CASES,
        image_verity::CASES,
        volatile::CASES,
        pivot::CASES,
        ostree::CASES,
        combined::CASES,
        leaks::CASES,
        limits::CASES,
        locks::CASES,
        console::CASES,
        terminal::CASES,
        credentials::CASES,
        errors::CASES,
        environment::CASES,
        explain::CASES,
        host::CASES,
        hostile::CASES,
        integration::CASES,
        outside::CASES,
        journal::CASES,
        rootless::CASES,
        runhost::CASES,
        user::CASES,
        userns::CASES,
        delegate::CASES,
        cleanup::CASES,
        security::CASES,
        settings::CASES,
        stacked::CASES,
    ],
    launcher: env!("CARGO_BIN_EXE_rspawn"),
    sources: env!("CARGO_MANIFEST_DIR"),
};

fn main() -> ExitCode {
    SUITE.main()
}
