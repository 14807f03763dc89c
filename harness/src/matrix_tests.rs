//! What is planned for which cell, and how it is dealt out.

use super::*;

fn case(name: &str, needs: &[ListedNeed]) -> Listing {
    Listing { name: name.to_owned(), needs: needs.to_vec(), timeout_s: 20 }
}

fn kernels() -> Vec<(String, (u32, u32))> {
    vec![("new".to_owned(), (6, 1)), ("old".to_owned(), (5, 10))]
}

fn fs() -> Vec<String> {
    vec!["ext4".to_owned(), "btrfs".to_owned()]
}

fn on<'a>(kernels: &'a [(String, (u32, u32))], lane_fs: &'a [String]) -> Axes<'a> {
    let subjects = &[Subject::Rspawn];
    Axes { kernels, lane_fs, every_fs: false, fs: &[], subjects }
}

fn shape(plan: &Plan) -> Vec<String> {
    let names =
        |job: &Job| job.cases.iter().map(|case| case.name.clone()).collect::<Vec<_>>().join("+");
    plan.jobs
        .iter()
        .map(|job| format!("{} {} {}", job.cell.kernel, job.cell.fs, names(job)))
        .collect()
}

#[test]
fn a_case_runs_once_per_kernel_where_its_file_system_is() {
    let cases = [case("a", &[]), case("b", &[ListedNeed::Fs("btrfs".to_owned())])];
    let plan = plan(&cases, &on(&kernels(), &fs()));
    assert_eq!(shape(&plan), ["new ext4 a", "new btrfs b", "old ext4 a", "old btrfs b"]);
    assert!(plan.skips.is_empty() && plan.unassigned.is_empty());
}

#[test]
fn a_lane_of_every_file_system_multiplies_what_names_none() {
    let cases = [case("a", &[]), case("b", &[ListedNeed::Fs("btrfs".to_owned())])];
    let (kernels, fs) = (&kernels()[..1], &fs());
    let every = Axes { every_fs: true, ..on(kernels, fs) };
    assert_eq!(shape(&plan(&cases, &every)), ["new ext4 a", "new btrfs a+b"]);
    let one = plan(&cases, &Axes { fs: &["ext4".to_owned()], ..every });
    assert_eq!(shape(&one), ["new ext4 a"]);
    assert_eq!(one.skips.len(), 1);
}

/// A failure on btrfs is looked at with --fs btrfs, whatever the lane.
#[test]
fn a_file_system_that_the_user_names_is_where_cases_run() {
    let cases = [case("a", &[]), case("x", &[ListedNeed::Fs("ext4".to_owned())])];
    let (kernels, fs) = (&kernels()[..1], &fs());
    let named = plan(&cases, &Axes { fs: &["btrfs".to_owned()], ..on(kernels, fs) });
    assert_eq!(shape(&named), ["new btrfs a"]);
    assert_eq!(named.skips[0].code, SkipCode::LaneExcluded);
    let both = plan(&cases, &Axes { fs, ..on(kernels, fs) });
    assert_eq!(shape(&both), ["new ext4 a+x", "new btrfs a"]);
}

#[test]
fn a_case_that_restarts_its_guest_needs_a_disk() {
    let cases = [case("r", &[ListedNeed::Restart])];
    let lane_fs = ["ext4".to_owned(), "tmpfs".to_owned()];
    let kernels = &kernels()[..1];
    let plan = plan(&cases, &Axes { every_fs: true, ..on(kernels, &lane_fs) });
    assert_eq!(shape(&plan), ["new ext4 r"]);
    assert_eq!((plan.skips[0].code, plan.skips[0].cell.fs.as_str()), (SkipCode::NoDisk, "tmpfs"));
}

#[test]
fn an_old_kernel_is_a_skip_with_its_reason_and_an_unknown_file_system_is_unassigned() {
    let cases =
        [case("a", &[ListedNeed::Kernel(5, 15)]), case("z", &[ListedNeed::Fs("zfs".to_owned())])];
    let plan = plan(&cases, &on(&kernels(), &fs()));
    assert_eq!(shape(&plan), ["new ext4 a"]);
    assert_eq!(plan.skips.len(), 1);
    assert_eq!(
        (plan.skips[0].code, plan.skips[0].cell.kernel.as_str()),
        (SkipCode::KernelTooOld, "old")
    );
    assert_eq!(plan.unassigned, ["z"]);
}

#[test]
fn a_case_about_one_launcher_is_skipped_with_the_other() {
    let cases = [case("a", &[]), case("o", &[ListedNeed::Only(Subject::Rspawn)])];
    let (kernels, fs) = (&kernels()[..1], &fs()[..1]);
    let both = &[Subject::Rspawn, Subject::Nspawn];
    let plan = plan(&cases, &Axes { subjects: both, ..on(kernels, fs) });
    let shown: Vec<_> = plan.jobs.iter().map(|job| job.cell.to_string()).collect();
    assert_eq!(shown, ["new ext4", "new ext4 nspawn"]);
    assert_eq!(shape(&plan), ["new ext4 a+o", "new ext4 a"]);
    assert_eq!((plan.skips[0].code, plan.skips[0].case.as_str()), (SkipCode::RefUnsupported, "o"));
}

#[test]
fn a_case_with_a_machine_of_its_own_shares_no_guest() {
    let needs = [ListedNeed::Fresh, ListedNeed::Memory(512), ListedNeed::Disk(64)];
    let mut cases = vec![case("a", &[]), case("b", &[])];
    cases.extend(needs.map(|need| case(&format!("{need:?}"), &[need])));
    let whole = plan(&cases, &on(&kernels()[..1], &fs()[..1]));
    let parts = split(whole.jobs, 1);
    assert_eq!(parts.iter().map(|job| job.cases.len()).collect::<Vec<_>>(), [2, 1, 1, 1]);
    let figures: Vec<_> = parts.iter().map(|job| (job.memory_mib(), job.disk_mib())).collect();
    assert_eq!(figures, [(None, None), (None, None), (Some(512), None), (None, Some(64))]);
}

#[test]
fn every_case_is_accounted_for_however_the_plan_is_cut() {
    let cases: Vec<Listing> = (0..25).map(|n| case(&format!("c{n}"), &[])).collect();
    let whole = plan(&cases, &on(&kernels()[..1], &fs()));
    for guests in 1..8 {
        let parts = split(whole.jobs.clone(), guests);
        let mut names: Vec<_> =
            parts.iter().flat_map(|job| job.cases.iter().map(|case| &case.name)).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 25);
    }
    assert_eq!(split(whole.jobs.clone(), 2).len(), 2);
    assert_eq!(apart(whole.jobs).len(), 25);
}

#[test]
fn guests_get_about_the_same_to_do_and_the_longest_job_is_first() {
    let long = |name: &str| Listing { timeout_s: 200, ..case(name, &[]) };
    let systemd = [ListedNeed::Shape(Shape::Systemd)];
    let mut cases: Vec<Listing> = (0..20).map(|n| case(&format!("c{n}"), &[])).collect();
    cases.extend([
        long("x"),
        long("y"),
        case("fs", &[ListedNeed::Fs("btrfs".to_owned())]),
        case("s", &systemd),
    ]);
    let whole = plan(&cases, &on(&kernels()[..1], &fs()));
    let parts = split(whole.jobs, 2);
    let weights: Vec<u32> = parts.iter().map(Job::weight).collect();
    assert_eq!(weights, [41, 30, 30, 11], "{parts:?}");
    assert_eq!(parts[0].cell.shape, Shape::Systemd);
    assert_eq!(parts[1].cases.last().unwrap().name, "x");
}
