//! What the payload may do: capabilities, system calls, limits and other attributes it inherits.
//!
//! Deciding is pure ([`caps::retained`], [`seccomp::Program`]); doing is a list of small functions that the inner
//! child calls shortly before exec. The order that works, each step needing what a later one takes away:
//! limits, oom score and affinity; personality; session keyring; bounding set; seccomp; user change; capability
//! sets; `no_new_privs` if asked.

pub mod caps;
pub mod limits;
pub mod seccomp;
pub mod selinux;
