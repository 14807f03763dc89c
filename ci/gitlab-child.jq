# From the rows of matrix.jq to a child pipeline, which is JSON and therefore YAML. --arg lane NAME
(
  .include
  | map({
      key: "\(.kernel) \(.share)/\(.shares)",
      value: {
        stage: "cases",
        script: [
          "cargo xtask setup",
          "cargo xtask vm-test --lane \($lane) --kernel \(.kernel) --partition slice:\(.share)/\(.shares) --deny-skips unexpected --junit junit.xml"
        ],
        artifacts: {
          when: "always",
          paths: ["target/vm/run-*"],
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
    script: ["cargo xtask vm-report merge target/vm/run-*"]
  }
}
