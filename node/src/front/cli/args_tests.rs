//! The grammar: every option, global ones before and after the verb, and what is refused.

use clap::{CommandFactory as _, Parser as _, error::ErrorKind};

use super::*;
use crate::report::ChunkerChoice;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("p2p-node").chain(line.split_whitespace()))
}

#[track_caller]
fn parsed(line: &str) -> Cli {
    parse(line).unwrap_or_else(|error| panic!("{line}: {error}"))
}

#[test]
fn the_grammar_is_consistent() {
    Cli::command().debug_assert();
}

/// The terminal's width breaks the lines of prose: a break of our own beside it leaves lines of one word.
#[test]
fn help_breaks_no_line_in_the_middle_of_a_sentence() {
    let program = Cli::command();
    let texts =
        program.get_subcommands().filter_map(clap::Command::get_after_long_help).chain(program.get_after_help());
    for text in texts.map(ToString::to_string) {
        let lines: Vec<&str> = text.lines().collect();
        for pair in lines.windows(2) {
            let prose = pair.iter().all(|line| !line.is_empty() && !line.starts_with(' '));
            assert!(!prose || pair[0].ends_with(['.', ':']), "broken in the middle: {pair:#?}");
        }
        for line in lines.iter().filter(|line| line.starts_with(' ')) {
            assert!(line.len() <= 100, "too long for a terminal: {line}");
        }
    }
}

#[test]
fn global_options_stand_before_or_after_the_verb() {
    for line in ["--data-dir /d --json -v status", "status --data-dir /d --json -v", "--json status -v --data-dir=/d"] {
        let global = parsed(line).global;
        assert_eq!(global.data_dir.as_deref(), Some(std::path::Path::new("/d")), "{line}");
        assert!(global.json && global.verbose == 1 && global.quiet == 0, "{line}");
    }
    assert_eq!(parsed("peers -q").global.quiet, 1);
    assert_eq!(parsed("-vv peers").global.verbose, 2);
    assert!(parse("peers -v -q").is_err());
}

#[test]
fn every_option_of_add_is_read() {
    let Command::Add(add) =
        parsed("add a - --name n --keep 0 --replicas 16 --chunker size-1KiB --preserve --wait 2").command
    else {
        panic!("it is add")
    };
    assert_eq!(add.paths.len(), 2);
    assert_eq!((add.name.as_deref(), add.keep, add.replicas, add.wait), (Some("n"), Some(0), Some(16), Some(2)));
    assert_eq!((add.chunker, add.preserve, add.local), (ChunkerChoice::Size(1024), true, false));
    let Command::Add(add) = parsed("add --local --chunker fastcdc x").command else { panic!("it is add") };
    assert_eq!((add.chunker, add.local, add.replicas, add.wait), (ChunkerChoice::Fastcdc, true, None, None));
    let Command::Add(add) = parsed("add --only-hash --preserve x").command else { panic!("it is add") };
    assert_eq!((add.chunker, add.only_hash), (ChunkerChoice::Size(1 << 20), true));
}

#[test]
fn every_option_of_the_other_verbs_is_read() {
    let Command::Daemon(daemon) = parsed(
        "daemon --listen /ip4/127.0.0.1/tcp/0 --listen /ip4/127.0.0.1/udp/0/quic-v1 --bootstrap /ip4/127.0.0.1/tcp/1 \
         --no-mdns --replicas 2 --capacity 10GiB --network lab --config c.toml",
    )
    .command
    else {
        panic!("it is daemon")
    };
    let partial = daemon.partial();
    assert_eq!(partial.listen.map(|l| l.len()), Some(2));
    assert_eq!(partial.bootstrap.map(|l| l.len()), Some(1));
    assert_eq!((partial.mdns, partial.replicas, partial.capacity_bytes), (Some(false), Some(2), Some(10 << 30)));
    assert_eq!((partial.network.as_deref(), daemon.config.is_some()), (Some("lab"), true));
    let Command::Daemon(daemon) = parsed("daemon").command else { panic!("it is daemon") };
    assert_eq!(daemon.partial(), crate::settings::Partial::default());

    let Command::Get(get) = parsed("get name/x -o out --force").command else { panic!("it is get") };
    assert!(get.output.is_some() && get.force);
    let Command::Cat(cat) = parsed("cat x --offset 1KiB --length 2").command else { panic!("it is cat") };
    assert_eq!((cat.offset, cat.length), (1024, Some(2)));
    let Command::Stat(stat) = parsed("stat x --no-placement").command else { panic!("it is stat") };
    assert!(stat.no_placement && stat.reference.is_some());
    let Command::Stat(stat) = parsed("stat --local").command else { panic!("it is stat") };
    assert!(stat.local && stat.reference.is_none());
    assert!(matches!(parsed("ls").command, Command::Ls(Ls { reference: None, .. })));
    let Command::Watch(watch) = parsed("watch --json --since 7").command else { panic!("it is watch") };
    assert_eq!(watch.since, Some(7));
    let Command::Rm(rm) = parsed("rm a b").command else { panic!("it is rm") };
    assert_eq!(rm.references, ["a", "b"]);
    let Command::Restore(restore) = parsed("restore a@3").command else { panic!("it is restore") };
    assert_eq!(restore.reference, "a@3");
    let Command::History(history) = parsed("history a").command else { panic!("it is history") };
    assert_eq!(history.reference, "a");
    assert!(matches!(parsed("gc").command, Command::Gc(_)));
    let Command::Drain(drain) = parsed("drain --cancel").command else { panic!("it is drain") };
    assert!(drain.cancel);
    let Command::Daemon(daemon) = parsed("daemon --label nas").command else { panic!("it is daemon") };
    assert_eq!(daemon.partial().label.as_deref(), Some("nas"));
    assert!(matches!(parsed("connect /ip4/1.2.3.4/tcp/1").command, Command::Connect(_)));
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(matches!(parsed(&format!("completions {shell}")).command, Command::Completions(_)));
    }
}

#[test]
fn what_is_not_in_the_grammar_is_refused_with_code_2() {
    for line in [
        "",
        "gc now",
        "drain x",
        "nonsense",
        "add",
        "get",
        "cat",
        "stat",
        "connect",
        "completions",
        "add x --replicas 0",
        "add x --replicas 17",
        "add x --wait 0",
        "add x --local --wait 1",
        "add x --chunker size-1023",
        "add x --chunker size-2097153",
        "add x --chunker rabin",
        "add x --chunker size-",
        "add x --only-hash --local",
        "add x --only-hash --name n",
        "add x --keep 3",
        "add x --name n --keep all",
        "rm",
        "restore",
        "restore a b",
        "history",
        "watch --since yesterday",
        "cat x --offset -1",
        "cat x --length 1KB",
        "stat x --local",
        "stat --no-placement",
        "stat --local --no-placement",
        "connect 127.0.0.1:4242",
        "daemon --capacity lots",
        "daemon --audit-interval often",
        "daemon --listen localhost",
        "daemon --no-mdns=perhaps",
        "daemon x",
        "completions tcsh",
        "status --repair-delay 1s",
        "verify a b",
        "ls a b",
    ] {
        let refused = parse(line).map(|cli| format!("{cli:?}")).map_err(|error| error.exit_code());
        assert_eq!(refused, Err(2), "{line}");
    }
}

#[test]
fn help_and_version_are_no_failures() {
    for line in ["--help", "-h", "--version", "add --help", "daemon -h"] {
        let shown = parse(line).map(|_| ()).map_err(|error| (error.exit_code(), error.kind()));
        assert!(matches!(shown, Err((0, ErrorKind::DisplayHelp | ErrorKind::DisplayVersion))), "{line}");
    }
}

#[test]
fn every_help_says_what_a_newcomer_needs() {
    let mut command = Cli::command();
    command.build();
    for verb in command.get_subcommands_mut() {
        let help = verb.render_long_help().to_string();
        let name = verb.get_name().to_owned();
        if name != "completions" {
            assert!(help.contains("Exit codes:"), "{name}");
        }
        for argument in verb.get_arguments() {
            assert!(argument.get_help().is_some(), "{name}: {}", argument.get_id());
        }
    }
}
