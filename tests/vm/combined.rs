//! `--pivot-root=`, `--volatile=` and `--read-only` together, on a directory and on an image: a table of all of them.

use std::fmt;

use anyhow::{Context, Result, ensure};
use harness::cases;
use harness::fixture::container::Container;
use harness::fixture::gpt::kind;
use harness::fixture::image::Fs;
use harness::fixture::tree::{Builder, Tree};
use harness::guest::Guest;

use crate::image::{EXT4, LOOP, OURS, container as image_container, disk};

cases![
    every_combination_on_a_directory: [] within 240,
    every_combination_on_an_image: [OURS, LOOP, EXT4] within 240,
    every_combination_on_a_copy_of_an_image: [OURS, LOOP, EXT4] within 240,
];

/// What is asked for.
#[derive(Debug, Clone, Copy)]
struct Combination {
    pivot: Pivot,
    volatile: Mode,
    read_only: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pivot {
    None,
    Covered,
    Kept,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    No,
    Yes,
    State,
    Overlay,
}

const PIVOTS: [(Pivot, &str); 3] = [
    (Pivot::None, ""),
    (Pivot::Covered, "--pivot-root=/new"),
    (Pivot::Kept, "--pivot-root=/new:/sysroot"),
];
const MODES: [(Mode, &str); 4] = [
    (Mode::No, ""),
    (Mode::Yes, "--volatile=yes"),
    (Mode::State, "--volatile=state"),
    (Mode::Overlay, "--volatile=overlay"),
];

/// What is then seen inside.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    who: &'static str,
    /// Whether /, /usr and /var can be written to, and the former root.
    writable: [bool; 4],
    /// Whether there is a former root.
    old: bool,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [root, usr, var, old] = self.writable.map(|can| if can { "w" } else { "r" });
        let old = if self.old { old } else { "-" };
        write!(f, "{} {root} {usr} {var} {old}", self.who)
    }
}

const LOOK: &str = "w() { if touch $1/probe 2> /dev/null; then echo w; else echo r; fi; }; \
                    old=-; if test -e /sysroot/usr/who; then old=$(w /sysroot); fi; \
                    echo $(cat /usr/who) $(w /) $(w /usr) $(w /var) $old";

impl Combination {
    fn all() -> impl Iterator<Item = (Self, Vec<&'static str>)> {
        PIVOTS.into_iter().flat_map(|(pivot, first)| {
            MODES.into_iter().flat_map(move |(volatile, second)| {
                [(false, ""), (true, "--read-only")].into_iter().map(move |(read_only, third)| {
                    let words = [first, second, third].into_iter().filter(|word| !word.is_empty());
                    (Self { pivot, volatile, read_only }, words.collect())
                })
            })
        })
    }

    /// VOL-01, VOL-03, VOL-06, PIV-04, PIV-05, I-08, I-09.
    fn expected(self) -> Seen {
        let who = if self.pivot == Pivot::None { "outer" } else { "inner" };
        let writable = match self.volatile {
            Mode::No => [!self.read_only; 4],
            Mode::Yes => [true, false, true, false],
            Mode::State => [false, false, true, false],
            // The former root is put into the overlay again, and only read there.
            Mode::Overlay => [true, true, true, false],
        };
        // A new root with nothing but /usr has no place for a former one.
        let old = self.pivot == Pivot::Kept && self.volatile != Mode::Yes;
        Seen { who, writable, old }
    }

    fn keeps_the_source(self) -> bool {
        self.read_only || self.volatile != Mode::No
    }
}

/// A root with another one in it.
fn tree(t: &Guest) -> Result<Tree> {
    let outer = t.tree().file("usr/who", "outer").build()?;
    let inner = Builder::minimal(outer.path()).name("new").file("usr/who", "inner").dir("sysroot");
    // It goes with the tree that it is in.
    std::mem::forget(inner.build()?);
    Ok(outer)
}

fn each(with: impl Fn() -> Container, changed: &mut dyn FnMut(bool) -> Result<bool>) -> Result<()> {
    for (combination, words) in Combination::all() {
        let run = words.iter().fold(with(), |all, word| all.arg(word)).sh(LOOK)?;
        let expected = combination.expected().to_string();
        run.prints(&expected).with_context(|| format!("{combination:?}"))?;
        let changed = changed(combination.keeps_the_source())?;
        ensure!(
            !(changed && combination.keeps_the_source()),
            "{combination:?} has changed the source"
        );
    }
    Ok(())
}

fn every_combination_on_a_directory(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    let mut before = tree.listing()?;
    each(|| t.container(&tree), &mut |kept| {
        let now = tree.listing()?;
        let changed = now.same_as(&before).is_err();
        if !kept {
            before = now;
        }
        Ok(changed)
    })
}

fn every_combination_on_an_image(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    let image = disk(t).part(kind::ROOT, Fs::Ext4, tree.path()).build()?;
    let mut before = image.checksum()?;
    each(|| image_container(t, image.path()), &mut |kept| {
        let now = image.checksum()?;
        let changed = now != before;
        if !kept {
            before = now;
        }
        Ok(changed)
    })
}

/// The same with a throw-away copy, which makes no difference inside.
fn every_combination_on_a_copy_of_an_image(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    let image = disk(t).part(kind::ROOT, Fs::Ext4, tree.path()).build()?;
    let before = image.checksum()?;
    let never = &mut |_| Ok(false);
    each(|| image_container(t, image.path()).arg("--ephemeral=copy"), never)?;
    each(|| image_container(t, image.path()).arg("--ephemeral=overlay"), never)?;
    ensure!(image.checksum()? == before, "the image was changed");
    Ok(())
}
