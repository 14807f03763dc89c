//! Which partitions may be used, and how must they be protected (`--image-policy=`, I-05)? Pure; words and meanings are
//! those of systemd.image-policy(7).

use anyhow::{Result, bail, ensure};

use super::discover::{Layout, Protection, Role};
use crate::errors::hinted;
use crate::settings::value::ImagePolicy;

/// The words that are accepted for a partition.
struct Rule<'a>(Vec<&'a str>);

impl<'a> Rule<'a> {
    /// The one that names a partition, or with `None` the one for all that are not named.
    fn named(policy: &'a ImagePolicy, name: Option<&str>) -> Option<Self> {
        let rule = policy.rules().iter().find(|rule| rule.partition.as_deref() == name)?;
        Some(Self(rule.accepts.iter().map(String::as_str).collect()))
    }

    fn of(policy: &'a ImagePolicy, role: Role) -> Self {
        let rule = Self::named(policy, Some(role.name())).or_else(|| Self::named(policy, None));
        // What no rule covers is ignored.
        rule.unwrap_or_else(|| Self(vec!["ignore"]))
    }

    fn has(&self, word: &str) -> bool {
        self.0.contains(&word)
    }

    /// Words about how a partition is used leave open whether it is.
    fn leaves_use_open(&self) -> bool {
        let other = |word: &&str| word.starts_with("read-only-") || word.starts_with("growfs-");
        self.has("open") || self.0.iter().all(other)
    }

    fn allows(&self, word: &str) -> bool {
        let ignored = self.has("ignore") && matches!(word, "unused" | "absent");
        self.has(word) || ignored || self.leaves_use_open()
    }
}

/// Takes out what the policy leaves unused and refuses what it forbids.
pub(super) fn apply(policy: &ImagePolicy, layout: &mut Layout) -> Result<()> {
    for role in Role::ALL {
        let rule = Rule::of(policy, role);
        let at = layout.used.iter().position(|used| used.role == role);
        let Some(at) = at else {
            ensure!(
                rule.allows("absent"),
                "--image-policy=: the image has no {role} partition, and must have one"
            );
            continue;
        };
        let found = layout.used[at].protection;
        // What is signed is verified, too.
        let weaker = found == Protection::Signed && rule.allows(Protection::Verity.name());
        if rule.allows(found.name()) || weaker {
            let used = &mut layout.used[at];
            let flags = [
                ("read-only-on", "read-only-off", used.read_only),
                ("growfs-on", "growfs-off", used.grow),
            ];
            for (on, off, is_on) in flags {
                let (said, other) = if is_on { (on, off) } else { (off, on) };
                ensure!(
                    !rule.has(other) || rule.has(said),
                    "--image-policy=: the {role} partition must have {other}"
                );
            }
        } else if rule.allows("unused") {
            layout.used.remove(at);
        } else {
            bail!(hinted(
                format!(
                    "--image-policy=: the {role} partition is {}, which is forbidden",
                    found.name()
                ),
                format!("the policy for it is {}", rule.0.join("+")),
            ));
        }
    }
    for role in [Role::Root, Role::Usr] {
        check_verity_data(policy, role, layout)?;
    }
    Ok(())
}

/// The partitions that only serve another one follow that; a rule that names one of them counts too.
fn check_verity_data(policy: &ImagePolicy, role: Role, layout: &Layout) -> Result<()> {
    let used = layout.used.iter().find(|used| used.role == role);
    let verified =
        used.is_some_and(|used| used.hash_tree.is_some() && used.protection != Protection::None);
    // Signatures are taken from files only.
    for (suffix, is_used) in [("verity", verified), ("verity-sig", false)] {
        let name = format!("{role}-{suffix}");
        let Some(rule) = Rule::named(policy, Some(&name)) else { continue };
        let (words, state) = match is_used {
            true => (["unprotected", "verity"], "used"),
            false => (["unused", "absent"], "not used"),
        };
        ensure!(
            words.iter().any(|word| rule.allows(word)),
            hinted(
                format!("--image-policy=: the {name} partition is {state}, which is forbidden"),
                format!("the policy for it is {}", rule.0.join("+")),
            )
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::discover::{Place, Programs, Used};
    use rstest::rstest;

    fn used(role: Role, read_only: bool, protection: Protection) -> Used {
        Used {
            role,
            number: Some(1),
            start_bytes: 0,
            size_bytes: None,
            read_only,
            grow: false,
            protection,
            hash_tree: None,
        }
    }

    fn check(policy: &str, layout: &mut Layout, expected: Result<&str, &str>) {
        match (apply(&policy.parse().unwrap(), layout), expected) {
            (Ok(()), Ok(names)) => {
                let found: Vec<_> = layout.used.iter().map(|used| used.role.name()).collect();
                assert_eq!(found.join(" "), names);
            }
            (Err(error), Err(why)) => assert!(error.to_string().contains(why), "{error}"),
            (found, expected) => panic!("{found:?} instead of {expected:?}"),
        }
    }

    /// I-05.
    #[rstest]
    #[case::open("*", Ok("root home"))]
    #[case::nothing_said_is_ignored("root=unprotected", Ok("root"))]
    #[case::unused("root=open:home=unused", Ok("root"))]
    #[case::absent("root=open:home=absent", Err("home partition is unprotected"))]
    #[case::verity("root=verity:=open", Err("root partition is unprotected"))]
    #[case::either("root=verity+unprotected:=open", Ok("root home"))]
    #[case::missing("=open:srv=unprotected", Err("no srv partition"))]
    #[case::read_only("=open:home=read-only-on", Ok("root home"))]
    #[case::not_read_only("=open:root=read-only-on", Err("must have read-only-on"))]
    #[case::none("-", Ok(""))]
    #[case::all_absent("~", Err("root partition is unprotected"))]
    fn a_policy_decides_what_is_used(#[case] policy: &str, #[case] expected: Result<&str, &str>) {
        let root = used(Role::Root, false, Protection::None);
        let home = used(Role::Home, true, Protection::None);
        let mut layout = Layout { used: vec![root, home], programs: Programs::Native };
        check(policy, &mut layout, expected);
    }

    /// I-05, I-10.
    #[rstest]
    #[case::verified("root=verity", Protection::Verity, Ok("root"))]
    #[case::must_not_be(
        "root=unprotected",
        Protection::Verity,
        Err("is verity, which is forbidden")
    )]
    #[case::unsigned("root=signed", Protection::Verity, Err("is verity, which is forbidden"))]
    #[case::signed("root=signed", Protection::Signed, Ok("root"))]
    #[case::more_than_asked_for("root=verity", Protection::Signed, Ok("root"))]
    #[case::its_data(
        "root=open:root-verity=unused",
        Protection::Verity,
        Err("root-verity partition is used")
    )]
    #[case::a_signature(
        "root=open:root-verity-sig=unprotected",
        Protection::Verity,
        Err("root-verity-sig")
    )]
    #[case::all_said("root=verity:root-verity=unprotected:=ignore", Protection::Verity, Ok("root"))]
    fn a_policy_asks_for_a_protection(
        #[case] policy: &str,
        #[case] protection: Protection,
        #[case] expected: Result<&str, &str>,
    ) {
        let hash_tree = Some(Place { start_bytes: 0, size_bytes: 1 });
        let used = vec![Used { hash_tree, ..used(Role::Root, false, protection) }];
        check(policy, &mut Layout { used, programs: Programs::Native }, expected);
    }
}
