# From the rows of matrix.jq to a child pipeline, which is JSON and therefore YAML. --arg lane NAME
([.include[].kernel] | unique) as $kernels
| (
  .include
  | map({
      key: "\(.kernel) \(.share)/\(.shares)",
      value: {
        stage: "cases",
        script: [
          "cargo xtask setup",
          "cargo xtask vm-test --lane \($lane) --kernel \(.kernel) --partition slice:\(.share)/\(.shares) --deny-skips unexpected --junit junit.xml --report report-\(.kernel)-\(.share).json"
        ],
        artifacts: {
          when: "always",
          paths: ["report-*.json", "target/vm/run-*"],
          exclude: ["target/vm/run-*/**/*.cpio"],
          reports: {junit: "junit.xml"}
        }
      }
    })
  | from_entries
)
+ {
  stages: ["cases", "report"],
  report: {
    stage: "report",
    when: "always",
    # One run is the shares of one kernel. A kernel without any report fails here, too.
    script: (["status=0"] + [$kernels[] | "cargo xtask vm-report merge report-\(.)-*.json || status=$?"] + ["exit $status"])
  }
}
