//! Whoever uses the network meanwhile: writers, readers and removers, each at one thing after the other.

use std::{fs, path::Path, time::Duration};

use rand::{Rng, rngs::StdRng, seq::IndexedRandom};

use super::{
    COPIES, Scene, judge,
    model::{Ending, Standing},
};
use crate::process::{Output, tree, wait::any_moment};

/// Contents that are there at once; a remover keeps it so. Bounds what the disks hold.
const MOST_KEPT: usize = 36;
/// The longest file of a writer.
const MOST_BYTES: f64 = 6e6;
/// The longest pause between two things that one does.
const PAUSE: Duration = Duration::from_millis(800);

/// A name for messages, a number for its chance, and what it does.
type Actor = (&'static str, u64, fn(&Scene, StdRng));

/// All of them.
pub fn all() -> Vec<Actor> {
    vec![
        ("writer 1", 11, |scene, random| writer(scene, random, 1)),
        ("writer 2", 12, |scene, random| writer(scene, random, 2)),
        ("reader 1", 21, reader),
        ("reader 2", 22, reader),
        ("remover", 31, remover),
    ]
}

/// The digest of what is at a path: names, links, contents.
pub fn digest(path: &Path) -> [u8; 32] {
    *blake3::hash(format!("{:?}", tree::survey(path)).as_bytes()).as_bytes()
}

fn writer(scene: &Scene, mut random: StdRng, number: u64) {
    let mut made = 0;
    while !scene.log.is_over() {
        any_moment(&mut random, PAUSE);
        if scene.model().all(Standing::Kept).len() > MOST_KEPT * 3 / 2 {
            continue;
        }
        // Now and then what was there before, or is there: from another machine, or again after it was removed.
        let again = made > 0 && random.random_range(0..6) == 0;
        let content = number * 1_000_000 + if again { random.random_range(0..made) } else { made };
        if !again {
            made += 1;
        }
        let place = random.random_range(0..scene.field.count());
        let name = (random.random_range(0..5) == 0).then(|| format!("name-{number}"));
        add(scene, content, place, name);
    }
}

/// Adds a content at `place`; what it is follows from its number and the seed.
pub fn add(scene: &Scene, content: u64, place: usize, name: Option<String>) {
    let seed = scene.plan.seed.wrapping_mul(1 << 32).wrapping_add(content);
    let mut random = scene.chance(content << 8);
    let source = scene.scratch.join(format!("source-{content}"));
    if random.random_range(0..4) == 0 {
        fs::create_dir_all(source.join("inside")).expect("there is room for a tree");
        for file in 0..random.random_range(2..12_u64) {
            let folder = if file % 3 == 0 { source.join("inside") } else { source.clone() };
            tree::noise_file(&folder.join(format!("{file}")), seed ^ (file << 48), random.random_range(0..120_000));
        }
    } else {
        let length = 1000.0 * (MOST_BYTES / 1000.0).powf(random.random_range(0.0..1.0));
        tree::noise_file(&source, seed, length as u64);
    }
    let mut words = vec!["add".to_owned(), source.to_string_lossy().into_owned()];
    if random.random_range(0..2) == 0 {
        words.extend(["--chunker".to_owned(), "size-65536".to_owned()]);
    }
    if let Some(name) = &name {
        words.extend(["--name".to_owned(), name.clone(), "--keep".to_owned(), "1".to_owned()]);
    }
    if let Some((command, peer)) = scene.field.command(place, &words) {
        let ticket = scene.model().begin_add(content, digest(&source), (peer, name.clone()));
        if let Some(ticket) = ticket {
            let output = Output::of(command);
            let line = output.json_lines().into_iter().find(|line| line["cid"].is_string());
            let said = line.as_ref().and_then(|line| line["cid"].as_str().map(str::to_owned));
            let copies = line.as_ref().and_then(|line| line["replicas"]["min"].as_u64()).unwrap_or_default();
            let ending = match (output.code, &said) {
                (0, Some(_)) if copies >= COPIES as u64 => Ending::Done,
                // A machine that knows nobody is a network of its own, and says how many copies there are.
                (0 | 5, Some(_)) => Ending::Short,
                // Refused for want of room before anything was published.
                (6, None) => Ending::Refused,
                _ => Ending::Unknown,
            };
            let shown = said.clone().unwrap_or_else(|| last_line(&output));
            let named = name.map_or(String::new(), |name| format!(" as {name}"));
            scene.log.event(format!("add of {content} at {place}{named}: {ending:?}, {shown}"));
            scene.log.count(if ending == Ending::Done { "adds" } else { "adds_failed" });
            if let Some(cid) = &said {
                judge::learn(scene, content, cid, place);
            }
            scene.model().end_add(&ticket, ending, said);
        }
    }
    let removed = if source.is_dir() { fs::remove_dir_all(&source) } else { fs::remove_file(&source) };
    removed.expect("what was written can be removed");
}

fn reader(scene: &Scene, mut random: StdRng) {
    while !scene.log.is_over() {
        any_moment(&mut random, PAUSE);
        let kept = scene.model().all(Standing::Kept);
        let Some(content) = kept.choose(&mut random).copied() else { continue };
        let place = random.random_range(0..scene.field.count());
        match read(scene, content, place, random.random()) {
            Read::Whole => scene.log.count("reads"),
            Read::Not(why) => {
                scene.log.event(format!("get of {content} at {place}: {why}"));
                scene.log.count("reads_failed");
            }
            Read::Wrong(what) => scene.log.found("lost", what),
        }
    }
}

/// What a read gave.
pub enum Read {
    /// What was written.
    Whole,
    /// Nothing.
    Not(String),
    /// Something else.
    Wrong(String),
}

/// Reads a content at `place`, `number` being a name that no other read has at this time.
pub fn read(scene: &Scene, content: u64, place: usize, number: u64) -> Read {
    let known = scene.model().content(content).map(|content| (content.cid.clone(), content.digest));
    let Some((Some(cid), digest_then)) = known else { return Read::Not("its root is not known".into()) };
    let target = scene.scratch.join(format!("copy-{number:x}"));
    let target_text = target.to_string_lossy().into_owned();
    let Some(output) = scene.field.run(place, ["get", &cid, "-o", &target_text]) else {
        return Read::Not("nobody is there".into());
    };
    if output.code != 0 {
        // A partial that a later get would go on from.
        remove_beside(&target);
        return Read::Not(format!("exit {}: {}", output.code, last_line(&output)));
    }
    let same = digest(&target) == digest_then;
    let _ = if target.is_dir() { fs::remove_dir_all(&target) } else { fs::remove_file(&target) };
    if same { Read::Whole } else { Read::Wrong(format!("{cid} read at {place} is not what was written")) }
}

/// Removes what a `get` that failed left beside its target, as far as it can.
fn remove_beside(target: &Path) {
    let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for entry in target.parent().into_iter().filter_map(|parent| fs::read_dir(parent).ok()).flatten().flatten() {
        if entry.file_name().to_string_lossy().contains(&name) {
            let path = entry.path();
            let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        }
    }
}

fn remover(scene: &Scene, mut random: StdRng) {
    while !scene.log.is_over() {
        any_moment(&mut random, PAUSE * 2);
        let many = scene.model().all(Standing::Kept).len() > MOST_KEPT;
        if !many && random.random_range(0..4) != 0 {
            continue;
        }
        let place = random.random_range(0..scene.field.count());
        let Some((_, peer)) = scene.field.command(place, ["status"]) else { continue };
        let own = scene.model().published_by(&peer);
        let Some(content) = own.choose(&mut random).copied() else { continue };
        remove(scene, content, place);
    }
}

fn remove(scene: &Scene, content: u64, place: usize) {
    let cid = scene.model().content(content).and_then(|content| content.cid.clone());
    let Some(cid) = cid else { return };
    judge::learn_all(scene, [&content]);
    // What nobody can say could not be looked for afterwards.
    if scene.model().content(content).is_none_or(|content| content.chunks.is_none()) {
        return;
    }
    let Some((command, peer)) = scene.field.command(place, ["rm", &cid]) else { return };
    let Some(ticket) = scene.model().begin_removal(content, &peer) else { return };
    let output = Output::of(command);
    let ending = match output.code {
        0 => Ending::Done,
        5 => Ending::Short,
        // A machine that was wiped does not know of it yet.
        4 => Ending::Refused,
        _ => Ending::Unknown,
    };
    let told = if ending == Ending::Done { String::new() } else { format!(", {}", last_line(&output)) };
    scene.log.event(format!("removal of {content} at {place}: {ending:?}{told}"));
    scene.log.count(if ending == Ending::Done { "removals" } else { "removals_failed" });
    scene.model().end_removal(&ticket, ending);
}

fn last_line(output: &Output) -> String {
    let line = output.stderr.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    format!("exit {}, {}", output.code, line.chars().take(300).collect::<String>())
}

/// Has everything that is kept read at `place`, as a scrub would; whether all of it was whole, or nothing wrong in not
/// being so.
pub fn read_all(scene: &Scene, place: usize) -> bool {
    let kept = scene.model().all(Standing::Kept);
    kept.into_iter().all(|content| match read(scene, content, place, (content << 8) + 0xff) {
        Read::Whole => true,
        Read::Not(why) => {
            scene.log.event(format!("get of {content} at {place}, which is damaged: {why}"));
            // Somebody may have removed it meanwhile.
            !scene.model().is_settled(content)
        }
        Read::Wrong(what) => {
            scene.log.found("lost", what);
            false
        }
    })
}
