//! What boots in a guest: the suite's own process 1, or a complete Debian.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// Key of the kernel's command line by which process 1 learns its shape.
pub const ARGUMENT: &str = "harness.shape";

/// Which userland a guest has, and who is its process 1.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// Process 1 is [`crate::guest::init`], and nothing runs beside the agent.
    #[default]
    Lean,
    /// Process 1 is systemd; dbus, journald, resolved and machined run as on a server, and the agent is a service.
    Systemd,
}

impl Shape {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Lean, Self::Systemd];

    /// As the kernel's command line and a person name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Lean => "lean",
            Self::Systemd => "systemd",
        }
    }

    /// The shape of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn parse(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|shape| shape.name() == name);
        found.with_context(|| format!("\"{name}\" is no shape of a guest\nhint: lean or systemd"))
    }

    /// The recipe in `images/` that its root is made by.
    #[must_use]
    pub fn image(self) -> &'static str {
        match self {
            Self::Lean => "guest",
            Self::Systemd => "systemd",
        }
    }

    /// How much longer than the lean one it may take to boot.
    #[must_use]
    pub fn boot_factor(self) -> f64 {
        match self {
            Self::Lean => 1.0,
            Self::Systemd => 4.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Shape;

    #[test]
    fn a_shape_is_found_by_its_own_name() {
        for shape in Shape::ALL {
            assert_eq!(Shape::parse(shape.name()).unwrap(), shape);
        }
        assert!(Shape::parse("fat").is_err());
    }
}
