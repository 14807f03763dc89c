# From `cargo xtask vm-test --plan json` to a matrix of jobs: a row for each kernel and share. --argjson shares N
{
  include: [
    ([.jobs[].cell.kernel] | unique[]) as $kernel
    | range(1; $shares + 1)
    | {kernel: $kernel, share: ., shares: $shares}
  ]
}
