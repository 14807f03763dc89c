//! What is compared? One row for each program, with the command line that makes it start the same container: the tree
//! as its root, its own mounts, processes, host name, IPC and cgroup view, the host's network, and no cgroup manager,
//! terminal or log where the program can do without.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::tool;

use super::oci;

/// Where everything is.
#[derive(Debug)]
pub struct Place {
    /// The container's root.
    pub tree: PathBuf,
    /// The program of `floor.rs`.
    pub floor: PathBuf,
    /// A disk image of 1 GiB with the same tree.
    pub image: PathBuf,
    /// The same tree once more, whose owners are changed at each start.
    pub given: PathBuf,
    /// What all this is about.
    pub rspawn: PathBuf,
    /// For what programs need beside the tree; it is empty, and nobody else's.
    pub scratch: PathBuf,
}

/// Something that takes a turn in each round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// The least that makes the container.
    Floor,
    /// The launcher of this workspace.
    Rspawn,
    /// bwrap(1).
    Bubblewrap,
    /// crun(1).
    Crun,
    /// runc(8).
    Runc,
    /// systemd-nspawn(1).
    Nspawn,
    /// The launcher of this workspace, on an image.
    RspawnImage,
    /// systemd-nspawn(1), on an image; it needs udev for that.
    NspawnImage,
    /// The launcher of this workspace, which gives all files of the tree to other users first.
    RspawnOwners,
    /// systemd-nspawn(1), which does the same.
    NspawnOwners,
    /// The payload without a container: what starting and waiting costs by itself.
    Bare,
    /// rspawn up to its `Spec`, which it then prints: program start, command line and settings.
    Spec,
}

impl Lane {
    /// Those that make a container. The floor is first.
    pub const CONTAINERS: [Self; 6] =
        [Self::Floor, Self::Rspawn, Self::Bubblewrap, Self::Crun, Self::Runc, Self::Nspawn];

    /// Those that make one on a disk image.
    pub const IMAGES: [Self; 2] = [Self::RspawnImage, Self::NspawnImage];

    /// Those that change the owners of a tree.
    pub const OWNERS: [Self; 2] = [Self::RspawnOwners, Self::NspawnOwners];

    /// Those that tell where the time goes.
    pub const PARTS: [Self; 2] = [Self::Bare, Self::Spec];

    /// As reports have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Rspawn => "rspawn",
            Self::Bubblewrap => "bubblewrap",
            Self::Crun => "crun",
            Self::Runc => "runc",
            Self::Nspawn => "systemd-nspawn",
            Self::RspawnImage => "rspawn -i",
            Self::NspawnImage => "nspawn -i",
            Self::RspawnOwners => "rspawn, chown",
            Self::NspawnOwners => "nspawn, chown",
            Self::Bare => "payload alone",
            Self::Spec => "rspawn --explain",
        }
    }

    /// The program to look for, of those that are not ours.
    #[must_use]
    pub fn foreign(self) -> Option<&'static str> {
        match self {
            Self::Bubblewrap => Some("bwrap"),
            Self::Crun => Some("crun"),
            Self::Runc => Some("runc"),
            Self::Nspawn | Self::NspawnImage | Self::NspawnOwners => Some("systemd-nspawn"),
            Self::Floor | Self::Bare | Self::Spec => None,
            Self::Rspawn | Self::RspawnImage | Self::RspawnOwners => None,
        }
    }

    /// The lane of ours that does the same.
    #[must_use]
    pub fn counterpart(self) -> Self {
        match self {
            Self::NspawnImage => Self::RspawnImage,
            Self::NspawnOwners => Self::RspawnOwners,
            _ => Self::Rspawn,
        }
    }

    /// The command that runs `payload`, an absolute path and its arguments.
    ///
    /// # Errors
    /// When a file that the program needs cannot be written.
    pub fn command(self, place: &Place, payload: &[&str]) -> Result<Command> {
        let mut command = match self {
            Self::Floor => Command::new(&place.floor),
            Self::Rspawn | Self::RspawnImage | Self::RspawnOwners | Self::Spec => {
                Command::new(&place.rspawn)
            }
            Self::Bare => Command::new(payload[0]),
            Self::Bubblewrap
            | Self::Crun
            | Self::Runc
            | Self::Nspawn
            | Self::NspawnImage
            | Self::NspawnOwners => tool::command(self.foreign().unwrap_or_else(|| self.name())),
        };
        match self {
            Self::Floor => command.arg(&place.tree).args(payload),
            Self::Rspawn => command.args(["-q", "-D"]).arg(&place.tree).args(payload),
            Self::RspawnImage => command.args(["-q", "-i"]).arg(&place.image).args(payload),
            Self::RspawnOwners => {
                command.args(["-q", "-D"]).arg(&place.given).args(owners(place)).args(payload)
            }
            Self::Spec => command.args(["--explain", "-q", "-D"]).arg(&place.tree).args(payload),
            Self::Bare => command.args(&payload[1..]),
            // The tree first: bubblewrap mounts in the order of its options.
            Self::Bubblewrap => command
                .args(["--unshare-pid", "--unshare-uts", "--unshare-ipc", "--unshare-cgroup-try"])
                .arg("--bind")
                .arg(&place.tree)
                .args(["/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/run"])
                .args(["--tmpfs", "/tmp"])
                .args(payload),
            Self::Crun | Self::Runc => {
                let dir = place.scratch.join(format!("{}-{}", self.name(), payload.len()));
                let bundle = oci::bundle(&dir, &place.tree, payload)?;
                let id = format!("rspawn-bench-{}", std::process::id());
                command.arg("--root").arg(place.scratch.join("state"));
                command.args(["run", "--bundle"]).arg(bundle).arg(id)
            }
            // The last three leave the tree's own files alone; rspawn does not touch them either.
            Self::Nspawn | Self::NspawnImage | Self::NspawnOwners => {
                let root = match self {
                    Self::NspawnImage => ("-i", &place.image),
                    Self::NspawnOwners => ("-D", &place.given),
                    _ => ("-D", &place.tree),
                };
                if self == Self::NspawnOwners {
                    command.args(owners(place));
                }
                command
                    .args(["-q", "--register=no", "--keep-unit"])
                    .args(["--resolv-conf=off", "--timezone=off", "--link-journal=no", root.0])
                    .arg(root.1)
                    .args(payload)
            }
        };
        Ok(command)
    }
}

/// Another range than the tree is in: who finds it in the right one has nothing to do.
fn owners(place: &Place) -> [String; 2] {
    const RANGES: [u32; 2] = [0x0100_0000, 0x0200_0000];
    // Without a tree any will do; who starts the container says what is wrong.
    let owner = std::fs::metadata(&place.given).map_or(0, |top| top.uid());
    let range = if owner == RANGES[0] { RANGES[1] } else { RANGES[0] };
    [format!("--private-users={range}:65536"), "--private-users-ownership=chown".to_owned()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_container_runs_the_payload_in_the_tree() {
        let scratch = tempfile::tempdir().unwrap();
        let place = Place {
            tree: PathBuf::from("/the/tree"),
            floor: PathBuf::from("/floor"),
            image: PathBuf::from("/the/tree.raw"),
            given: PathBuf::from("/the/tree.given"),
            rspawn: PathBuf::from("/rspawn"),
            scratch: scratch.path().to_owned(),
        };
        for lane in Lane::CONTAINERS.into_iter().chain(Lane::IMAGES).chain(Lane::OWNERS) {
            let command = lane.command(&place, &["/bin/payload", "x"]).unwrap();
            let mut said = tool::display(&command);
            let config = scratch.path().join(format!("{}-2/config.json", lane.name()));
            said.push_str(&std::fs::read_to_string(config).unwrap_or_default());
            assert!(said.contains("/the/tree") && said.contains("/bin/payload"), "{said}");
        }
    }
}
