//! The rules of the house that a compiler does not hold: who may import whom, what `protocol` must not touch,
//! how a file begins and how long it may grow.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// About 500 lines is where a file has become two subjects; past this it has.
const MAX_LINES: usize = 620;
/// The longest line of a text.
const MAX_COLUMNS: usize = 120;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package stands in the workspace").to_owned()
}

fn sources(below: &Path) -> Vec<(PathBuf, String)> {
    texts(below, "rs")
}

/// The files below a directory whose names end in `ending`, what is built or hidden left out.
fn texts(below: &Path, ending: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut directories = vec![below.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("a readable source tree") {
            let path = entry.expect("a readable source tree").path();
            if path.is_dir() {
                if path.file_name().is_none_or(|name| name != "target" && !name.as_encoded_bytes().starts_with(b".")) {
                    directories.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == ending) {
                let text = fs::read_to_string(&path).expect("a source file");
                found.push((path, text));
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no sources below {}", below.display());
    found
}

fn every_source() -> Vec<(PathBuf, String)> {
    ["node", "protocol", "simulator", "tests", "fuzz"]
        .iter()
        .flat_map(|package| sources(&root().join(package)))
        .collect()
}

/// The part of a file that is not its unit tests: rules on imports bind what ships.
fn shipped<'a>(path: &Path, text: &'a str) -> &'a str {
    let named = |part: &str| part == "tests" || part == "tests.rs" || part.ends_with("_tests.rs");
    if path.iter().filter_map(|part| part.to_str()).skip_while(|part| *part != "src").any(named) || is_test_module(path)
    {
        return "";
    }
    text.split("#[cfg(test)]\nmod ").next().unwrap_or(text)
}

/// Whether the module that a file is belongs to the tests alone.
fn is_test_module(path: &Path) -> bool {
    let (Some(folder), Some(name)) = (path.parent(), path.file_stem().and_then(|stem| stem.to_str())) else {
        return false;
    };
    let parents = [folder.join("mod.rs"), folder.with_extension("rs")];
    let declared = [format!("#[cfg(test)]\nmod {name};"), format!("#[cfg(test)]\npub(crate) mod {name};")];
    parents.iter().filter_map(|parent| fs::read_to_string(parent).ok()).any(|t| declared.iter().any(|d| t.contains(d)))
}

/// The rooms named in `crate::ROOM` paths, in `use crate::{a, b}` groups too.
fn rooms(text: &str) -> Vec<String> {
    named_after("crate::", text)
}

/// What is named right after `prefix`, which stands at the beginning of a path or of an item of a group.
fn named_after(prefix: &str, text: &str) -> Vec<String> {
    let mut rooms = Vec::new();
    for (at, _) in text.match_indices(prefix) {
        let before = text[..at].trim_end_matches("crate::").chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':' || c == '$') {
            continue;
        }
        let rest = &text[at + prefix.len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 1;
            let mut item = String::new();
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    _ => {}
                }
                if depth == 0 || (c == ',' && depth == 1) {
                    rooms.push(item.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
                    item.clear();
                    if depth == 0 {
                        break;
                    }
                } else {
                    item.push(c);
                }
            }
        } else {
            rooms.push(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    rooms.retain(|room: &String| !room.is_empty());
    rooms
}

#[test]
fn imports_go_one_way() {
    let leaves = ["error", "report", "settings"];
    // What is said to users, and how, is the front's.
    let speechless = ["node", "service", "store", "net", "identity"];
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("front", &["front", "node", "service", "store", "net", "identity"][..]),
        ("node", &["node", "service", "store", "net", "identity"]),
        ("service", &["service", "store", "net", "runner"]),
        ("store", &["store"]),
        ("net", &["net", "runner"]),
        ("runner", &[]),
        ("identity", &["identity"]),
        ("error", &[]),
        // How far something is comes from the service that does it.
        ("report", &["service"]),
        ("settings", &[]),
    ]);
    let source = root().join("node/src");
    let mut wrong = Vec::new();
    for (path, text) in sources(&source) {
        let within = path.strip_prefix(&source).expect("below the source tree");
        let room = within.iter().next().and_then(|first| first.to_str()).expect("a name").trim_end_matches(".rs");
        if ["lib", "main"].contains(&room) {
            continue;
        }
        let may = allowed.get(room).unwrap_or_else(|| panic!("a room without a rule: {room}"));
        for used in rooms(shipped(&path, &text)) {
            let leaf = leaves.contains(&used.as_str()) && !speechless.contains(&room)
                || (room, &*used) == ("node", "settings");
            if !leaf && !may.contains(&used.as_str()) {
                wrong.push(format!("{} uses crate::{used}", within.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "imports against the order front → node → service → store, net:\n{}", wrong.join("\n"));
}

#[test]
fn the_reader_of_imports_sees_groups_and_paths() {
    let text =
        "use crate::{net::{A, B}, store::C,\n error};\nfn f() { crate::service::x(); mycrate::no(); $crate::no() }";
    assert_eq!(rooms(text), ["net", "store", "error", "service"]);
}

/// Which services each service may use: what stands below it. One that is not named here may use none.
const SERVICES_BELOW: [(&str, &[&str]); 22] = [
    ("worker", &[]),
    ("blocking", &["worker"]),
    ("distinct", &[]),
    ("progress", &[]),
    ("reason", &[]),
    ("wanted", &[]),
    ("turns", &["worker"]),
    ("transfer", &["wanted", "worker"]),
    ("locate", &["transfer", "worker"]),
    ("replicate", &["locate", "transfer", "wanted", "worker"]),
    ("fetch", &["locate", "transfer", "worker"]),
    ("ingest", &["blocking", "distinct", "progress", "reason", "replicate"]),
    ("catalogue", &["worker"]),
    ("sync", &["blocking", "catalogue", "turns", "worker"]),
    (
        "inspect",
        &["blocking", "catalogue", "distinct", "fetch", "holders", "locate", "progress", "reason", "sync", "transfer"],
    ),
    ("export", &["blocking", "distinct", "fetch", "inspect", "progress", "reason"]),
    ("audit", &["blocking", "catalogue", "transfer", "turns", "wanted", "worker"]),
    (
        "keep",
        &["audit", "blocking", "catalogue", "fetch", "locate", "progress", "sync", "transfer", "wanted", "worker"],
    ),
    ("pin", &["blocking", "fetch", "inspect", "keep", "progress"]),
    ("holders", &["locate", "transfer"]),
    ("scrub", &["blocking", "holders", "keep", "locate", "progress", "transfer", "worker"]),
    ("remember", &["locate", "worker"]),
];

#[test]
fn services_use_only_those_below_them() {
    let below = BTreeMap::from(SERVICES_BELOW);
    let source = root().join("node/src/service");
    let mut wrong = Vec::new();
    for (path, text) in sources(&source) {
        let within = path.strip_prefix(&source).expect("below the source tree");
        let own = within.iter().next().and_then(|first| first.to_str()).expect("a name").trim_end_matches(".rs");
        let text = shipped(&path, &text);
        if own == "mod" || text.is_empty() {
            continue;
        }
        let may = below.get(own).unwrap_or_else(|| panic!("a service without a rule: {own}"));
        let mut used = named_after("service::", text);
        // In the service's own first file, its neighbours are `super::`.
        if within.iter().count() == 1 || within.ends_with("mod.rs") {
            used.extend(named_after("super::", text).into_iter().filter(|name| below.contains_key(name.as_str())));
        }
        for used in used {
            if used != own && !may.contains(&used.as_str()) {
                wrong.push(format!("service/{} uses {used}", within.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "services that use what is not below them:\n{}", wrong.join("\n"));
}

/// The first word of the command line that a line of code says: an option, or the program with a verb.
fn command_line_word(code: &str) -> Option<&str> {
    let word = |at: usize| code[at..].split(|c: char| c.is_whitespace() || "\"\\`,;:)=".contains(c)).next();
    for (at, _) in code.match_indices('-') {
        let starts = code[..at].chars().next_back().is_none_or(|c| c.is_whitespace() || "\"(`".contains(c));
        let option = word(at).unwrap_or_default();
        let name = option.trim_start_matches('-');
        let short = option.len() == 2 && code[..at].ends_with(' ');
        let long = option.starts_with("--") && name.len() > 1;
        if starts && (short || long) && name.starts_with(|c: char| c.is_ascii_lowercase()) {
            return Some(option);
        }
    }
    let verbs = [
        "daemon",
        "add",
        "get",
        "cat",
        "ls",
        "stat",
        "status",
        "watch",
        "rm",
        "restore",
        "history",
        "peers",
        "connect",
        "completions",
        "verify",
        "pin",
        "unpin",
    ];
    let program = "p2p-node ";
    let verb = |at: usize| verbs.contains(&word(at + program.len()).unwrap_or_default());
    code.match_indices(program).find(|(at, _)| verb(*at)).map(|(at, _)| &code[at..])
}

#[test]
fn rooms_name_no_option_and_no_verb() {
    let source = root().join("node/src");
    let rooms = ["service", "store", "net"].map(|room| sources(&source.join(room)));
    let node = fs::read_to_string(source.join("node.rs")).expect("a source file");
    let mut wrong = Vec::new();
    for (path, text) in rooms.into_iter().flatten().chain([(source.join("node.rs"), node)]) {
        for (number, line) in shipped(&path, &text).lines().enumerate() {
            let code = line.split("//").next().unwrap_or(line);
            // A constant's own name, a range's end: only what stands in a string is said to somebody.
            let said = code.find('"').map_or("", |at| &code[at..]);
            if let Some(word) = command_line_word(said) {
                wrong.push(format!("{}:{} says {word}", path.display(), number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "words of the command line outside of front/:\n{}", wrong.join("\n"));
}

#[test]
fn the_reader_of_strings_sees_options_and_verbs() {
    for said in
        ["\"a larger --capacity\"", "\"another place with -o\"", "\"`p2p-node ls` shows\"", "\"--listen (port 0)\""]
    {
        assert!(command_line_word(said).is_some(), "{said}");
    }
    for plain in ["\"cannot add -: it\"", "\"/p2p-node/main/x\"", "\"well-known\", a - b", "\"p2p-partial\""] {
        assert_eq!(command_line_word(plain), None, "{plain}");
    }
}

#[test]
fn protocol_is_pure() {
    let forbidden = [
        "tokio",
        "std::fs",
        "std::net",
        "std::thread",
        "std::env",
        "std::process",
        "SystemTime",
        "Instant::now",
        "rand::",
        "getrandom",
        "async fn",
    ];
    let mut wrong = Vec::new();
    for (path, text) in sources(&root().join("protocol/src")) {
        for (number, line) in shipped(&path, &text).lines().enumerate() {
            let code = line.split("//").next().unwrap_or(line);
            for word in forbidden {
                if code.contains(word) {
                    wrong.push(format!("{}:{} uses {word}", path.display(), number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "protocol/ has no I/O, no clock and no entropy:\n{}", wrong.join("\n"));
}

/// It runs the machines of `protocol` and nothing of the node, on one start of the clock: the same seed, the same run.
#[test]
fn the_simulator_stands_on_protocol_alone() {
    let (mut clocks, mut wrong) = (0, Vec::new());
    for (path, text) in sources(&root().join("simulator/src")) {
        for (number, line) in shipped(&path, &text).lines().enumerate() {
            let code = line.split("//").next().unwrap_or(line);
            clocks += code.matches("Instant::now").count();
            for word in ["p2p_node", "tokio", "std::fs", "std::net", "std::thread", "SystemTime", "rand::", "getrandom"]
            {
                if code.contains(word) {
                    wrong.push(format!("{}:{} uses {word}", path.display(), number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(clocks, 1, "simulated time counts from one instant, which nothing looks at");
}

#[test]
fn state_machines_do_not_import_each_other() {
    let machines = ["catch_up", "discovery", "fetch", "locate", "replicate", "reconcile"];
    let source = root().join("protocol/src");
    for (path, text) in sources(&source) {
        let within = path.strip_prefix(&source).expect("below the source tree");
        let own = within.iter().next().and_then(|first| first.to_str()).expect("a name").trim_end_matches(".rs");
        if !machines.contains(&own) {
            continue;
        }
        for used in rooms(shipped(&path, &text)) {
            assert!(used == own || !machines.contains(&used.as_str()), "{} uses crate::{used}", within.display());
        }
    }
}

#[test]
fn every_file_says_its_subject_and_is_not_two() {
    let mut wrong = Vec::new();
    for (path, text) in every_source() {
        let fuzz_target = path.components().any(|part| part.as_os_str() == "fuzz_targets");
        if !text.starts_with("//! ") && !fuzz_target {
            wrong.push(format!("{} does not open with //!", path.display()));
        }
        let lines = text.lines().count();
        if lines > MAX_LINES {
            wrong.push(format!("{} has {lines} lines", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Rows of tables and what stands in code blocks cannot be broken.
#[test]
fn markdown_is_wrapped() {
    let mut wrong = Vec::new();
    for (path, text) in texts(&root(), "md") {
        let within = path.strip_prefix(root()).expect("below the root").display().to_string();
        let mut code = false;
        for (number, line) in text.lines().enumerate() {
            code ^= line.trim_start().starts_with("```");
            if !code && !line.starts_with('|') && line.chars().count() > MAX_COLUMNS {
                wrong.push(format!("{within}:{}", number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "lines over {MAX_COLUMNS} characters:\n{}", wrong.join("\n"));
}

#[test]
fn nothing_is_left_open() {
    // Split, so that this file does not find itself.
    let marks = [concat!("to", "do!("), concat!("unimpl", "emented!("), concat!("FIX", "ME"), concat!("SKEL", "ETON")];
    let mut wrong = Vec::new();
    for (path, text) in every_source() {
        for mark in marks {
            if text.contains(mark) {
                wrong.push(format!("{} has {mark}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
