//! Every command explains itself.

use tests::tool::Workplace;

#[test]
fn every_command_has_help() {
    for (tool, count) in [("tdnn", 14), ("mmdiffusion", 14), ("lighthubert", 13)] {
        let place = Workplace::new(tool);
        let overview = place.run(["--help"]).success().stdout;
        let commands: Vec<&str> = overview
            .lines()
            .skip_while(|line| !line.starts_with("Commands:"))
            .skip(1)
            .take_while(|line| !line.is_empty())
            .filter_map(|line| line.split_whitespace().next())
            .filter(|command| *command != "help")
            .collect();
        assert_eq!(commands.len(), count, "{overview}");
        for command in commands {
            let help = place.run([command, "--help"]).success().stdout;
            assert!(help.contains("--json"), "{tool} {command}");
        }
    }
}
