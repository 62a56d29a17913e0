//! Every command explains itself.

use std::process::Command;

#[test]
fn every_command_has_help() {
    let help = |arguments: &[&str]| {
        let run = Command::new(env!("CARGO_BIN_EXE_tdnn")).args(arguments).output().unwrap();
        assert!(run.status.success(), "{arguments:?}");
        String::from_utf8(run.stdout).unwrap()
    };
    let overview = help(&["--help"]);
    let commands: Vec<&str> = overview
        .lines()
        .skip_while(|line| !line.starts_with("Commands:"))
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .filter(|command| *command != "help")
        .collect();
    assert_eq!(commands.len(), 14, "{overview}");
    for command in commands {
        assert!(help(&[command, "--help"]).contains("--json"), "{command}");
    }
}
