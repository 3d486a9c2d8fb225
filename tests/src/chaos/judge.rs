//! What must hold: after each repair that every copy is there again, and at the end all of the promise.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, thread,
    time::{Duration, Instant},
};

use p2p_protocol::{
    Cid,
    manifest::{Entry, Listing},
};
use serde_json::Value;

use super::{
    COPIES, GRACE, Scene,
    model::Standing,
    verdict::{self, Complaint, Entries, Seen, Stores},
    work::{self, Read},
};
use crate::process::{placement, tree, wait::a_tick};

/// How long the end may take: what was removed is freed once every peer that was seen within seven graces compared
/// catalogues, or is away for longer; and a busy machine.
const PATIENCE: Duration = Duration::from_secs(8 * GRACE.as_secs() + 180);
/// Contents that are added to be destroyed, until one has a file that is long enough: of four, one is a tree, and few are
/// short.
const SABOTAGED: u64 = 16;
/// Complaints of a kind that are told.
const TOLD: usize = 5;

/// Has the model know the chunks of a content, its manifest's included, as a machine says them.
pub fn learn(scene: &Scene, content: u64, cid: &str, place: usize) {
    let output = scene.field.run(place, ["stat", cid]).filter(|output| output.code == 0);
    let Some(rows) = output.and_then(|output| output.json()["placement"].as_array().cloned()) else { return };
    let entries: Option<Vec<Entry>> = rows.iter().map(entry).collect();
    let Some(mut entries) = entries else {
        return scene.log.found("broken", format!("stat of {cid} at {place} lists what is no chunk: {rows:?}"));
    };
    let mut chunks: BTreeSet<String> = entries.iter().map(|entry| entry.cid.to_string()).collect();
    entries.sort_by_key(Entry::key);
    let mut own = Vec::new();
    match Listing::of(entries, &mut own) {
        Ok(_) => chunks.extend(own.iter().map(|chunk| chunk.cid().to_string())),
        Err(error) => return scene.log.found("broken", format!("stat of {cid} at {place}: {error}")),
    }
    scene.model().consists_of(content, chunks);
}

fn entry(row: &Value) -> Option<Entry> {
    let cid: Cid = row["cid"].as_str()?.parse().ok()?;
    Some(Entry { cid, length: u32::try_from(row["size"].as_u64()?).ok()? })
}

/// Whether everything that is kept is on its k closest, so that copies may be destroyed again. A chunk that is nowhere
/// is told as found at once.
///
/// # Errors
///
/// What is not so yet.
pub fn repaired(scene: &Scene) -> Result<(), String> {
    if !scene.model().may_look() {
        return Err("an add is under way that began before the harm".into());
    }
    let kept = scene.model().all(Standing::Kept);
    let short = scene.model().all(Standing::Short);
    learn_all(scene, kept.iter().chain(&short));
    everybody_knows_all(scene)?;
    let stores = stores(scene)?;
    for content in &kept {
        placed(scene, *content, &stores)?;
    }
    let made_up: Vec<u64> = short.into_iter().filter(|content| placed(scene, *content, &stores).is_ok()).collect();
    scene.model().repaired(&made_up);
    Ok(())
}

/// All chunks of a content are at least on their k closest.
fn placed(scene: &Scene, content: u64, stores: &Stores) -> Result<(), String> {
    let chunks = scene.model().content(content).and_then(|content| content.chunks.clone());
    let Some(chunks) = chunks else { return Err(format!("the chunks of {content} are not known")) };
    let peers = scene.field.peers();
    for chunk in chunks {
        let nearest = placement::closest(&chunk, peers.iter().map(String::as_str), COPIES);
        if stores.iter().all(|store| !store.contains_key(&chunk)) && scene.model().is_settled(content) {
            let text = format!("{chunk} of {content} is on no disk");
            scene.log.found("lost", &text);
            return Err(text);
        }
        let lacking = |place: &usize| nearest.contains(&peers[*place].as_str()) && !stores[*place].contains_key(&chunk);
        if let Some(place) = (0..peers.len()).find(lacking) {
            return Err(format!("{chunk} of {content} is not at {place}"));
        }
    }
    Ok(())
}

/// Has the model know the chunks of those whose it does not.
pub fn learn_all<'a>(scene: &Scene, contents: impl IntoIterator<Item = &'a u64>) {
    for number in contents {
        let content = scene.model().content(*number).cloned();
        if let Some(cid) = content.filter(|content| content.chunks.is_none()).and_then(|content| content.cid) {
            learn(scene, *number, &cid, *number as usize % scene.field.count());
        }
    }
}

fn everybody_knows_all(scene: &Scene) -> Result<(), String> {
    let others = scene.field.count() as u64 - 1;
    for (place, status) in at_all(scene, &["status"])?.into_iter().enumerate() {
        let known = status.first().and_then(|status| status["known_peers"].as_u64());
        if known != Some(others) {
            return Err(format!("{place} knows {known:?} of {others} others"));
        }
    }
    Ok(())
}

fn stores(scene: &Scene) -> Result<Stores, String> {
    let text = |line: &Value, name: &str| line[name].as_str().unwrap_or_default().to_owned();
    let all = at_all(scene, &["stat", "--local"])?;
    Ok(all.iter().map(|lines| lines.iter().map(|line| (text(line, "cid"), text(line, "role"))).collect()).collect())
}

/// What every machine answers, asked side by side.
fn at_all(scene: &Scene, words: &[&str]) -> Result<Vec<Vec<Value>>, String> {
    let all = thread::scope(|scope| {
        let asked: Vec<_> = (0..scene.field.count())
            .map(|place| scope.spawn(move || scene.field.run(place, words).filter(|output| output.code == 0)))
            .collect();
        asked.into_iter().map(|asked| asked.join().ok().flatten()).collect::<Vec<_>>()
    });
    let answers = all.into_iter().enumerate();
    answers.map(|(place, output)| Ok(output.ok_or(format!("{place} does not answer"))?.json_lines())).collect()
}

/// The end: waits for quiet, then has everything read from everywhere.
pub fn run(scene: &Scene) {
    scene.log.event("everybody is left alone until all is quiet");
    quiet(scene);
    if scene.plan.sabotage && scene.log.all_found().is_empty() {
        sabotage(scene);
        quiet(scene);
    }
    if scene.log.all_found().is_empty() {
        everything_is_read(scene);
    }
    if scene.log.all_found().is_empty() {
        every_disk_is_read(scene);
    }
    let model = scene.model();
    for (name, standing) in [
        ("kept", Standing::Kept),
        ("short", Standing::Short),
        ("removed", Standing::Removed),
        ("unsure", Standing::Unsure),
    ] {
        scene.log.add(name, model.all(standing).len() as u64);
    }
}

/// Waits until nothing is to be complained of; what is at the end is found.
fn quiet(scene: &Scene) {
    let began = Instant::now();
    let mut told = String::new();
    loop {
        let complaints = complaints(scene);
        if complaints.is_empty() {
            scene.log.at_least("quiet_s", began.elapsed().as_secs());
            // What was short at first and is there now must be read as well.
            if let Err(why) = repaired(scene) {
                scene.log.event(format!("not quiet any more: {why}"));
            }
            return scene.log.event("all is quiet: catalogues equal, copies in their places, what was removed gone");
        }
        let lost = complaints.iter().any(|(kind, _)| *kind == "lost");
        if lost || began.elapsed() > PATIENCE {
            let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
            for (kind, text) in complaints {
                let count = counts.entry(kind).or_default();
                *count += 1;
                if *count <= TOLD {
                    scene.log.found(kind, text);
                }
            }
            return;
        }
        let (kind, text) = &complaints[0];
        let now = format!("{} not so yet, such as {kind}: {text}", complaints.len());
        if now != told {
            scene.log.event(&now);
            told = now;
        }
        (0..10).for_each(|_| a_tick());
    }
}

/// All that does not hold, each with the name under which it is counted.
fn complaints(scene: &Scene) -> Vec<Complaint> {
    if let Some((place, said)) = scene.field.fallen(|_| true) {
        return vec![("broken", format!("{place} ended by itself: {said}"))];
    }
    let [kept, short] = [Standing::Kept, Standing::Short].map(|standing| scene.model().all(standing));
    learn_all(scene, kept.iter().chain(&short));
    match everybody_knows_all(scene).and_then(|()| see(scene)) {
        Ok(seen) => verdict::complaints(&scene.model(), &seen),
        Err(why) => vec![("unequal", why)],
    }
}

/// What all machines say now.
fn see(scene: &Scene) -> Result<Seen, String> {
    let (peers, stores) = (scene.field.peers(), stores(scene)?);
    Ok(Seen { peers, stores, listed: at_all(scene, &["ls"])?.into_iter().map(listed).collect() })
}

/// What `ls` says of each entry, as far as it is the same everywhere.
fn listed(lines: Vec<Value>) -> Entries {
    let said = ["name", "kind", "size", "publisher", "version", "updated"];
    lines
        .iter()
        .map(|line| {
            let rest: Vec<String> = said.iter().map(|name| line[*name].to_string()).collect();
            (line["cid"].as_str().unwrap_or_default().to_owned(), rest.join(" "))
        })
        .collect()
}

/// Every kept content from every machine.
fn everything_is_read(scene: &Scene) {
    let kept = scene.model().all(Standing::Kept);
    scene.log.event(format!("{} roots are read from {} machines", kept.len(), scene.field.count()));
    thread::scope(|scope| {
        for place in 0..scene.field.count() {
            let kept = &kept;
            scope.spawn(move || {
                for content in kept {
                    match work::read(scene, *content, place, (*content << 8) + place as u64) {
                        Read::Whole => scene.log.count("reads_at_the_end"),
                        Read::Not(why) => scene.log.found("lost", format!("{content} at {place}: {why}")),
                        Read::Wrong(what) => scene.log.found("lost", what),
                    }
                }
            });
        }
    });
}

/// Every chunk on every disk, as a scrub would: a copy counts only if its bytes are right.
fn every_disk_is_read(scene: &Scene) {
    thread::scope(|scope| {
        for place in 0..scene.field.count() {
            scope.spawn(move || match scene.field.run(place, ["verify"]) {
                Some(output) if output.code == 0 => {
                    let (said, number) = (output.json(), |value: &Value| value.as_u64().unwrap_or_default());
                    scene.log.add("chunks_at_the_end", number(&said["chunks"]));
                    if number(&said["damaged"]) > 0 {
                        scene.log.found("damaged", format!("{place} has chunks that are damaged: {said}"));
                    }
                }
                Some(output) => scene.log.found("damaged", format!("verify at {place}: exit {}", output.code)),
                None => scene.log.found("broken", format!("{place} does not answer")),
            });
        }
    });
}

/// Destroys the beginning of a file on every disk, behind the machines' backs.
fn sabotage(scene: &Scene) {
    let kept = scene.model().all(Standing::Kept);
    let added = (1..=SABOTAGED).inspect(|content| work::add(scene, *content, 0, None));
    let chosen = kept.into_iter().chain(added).find_map(|content| Some((content, beginning_of(scene, content)?)));
    let Some((content, bytes)) = chosen else {
        return scene.log.found("broken", "nothing could be sabotaged");
    };
    let mut times = 0;
    for place in 0..scene.field.count() {
        scene.field.kill(place);
        times += scene.field.destroy(place, &bytes).unwrap_or_default();
    }
    scene.log.event(format!("sabotage: the beginning of a file of {content} is destroyed in {times} places"));
    scene.log.add("sabotaged", times);
    if times < COPIES as u64 {
        scene.log.found("broken", format!("{content} was kept in {times} places only"));
    }
    for place in 0..scene.field.count() {
        if let Err(reason) = scene.field.restart(place) {
            scene.log.found("broken", format!("{place} did not come back: {reason}"));
        }
    }
}

/// The beginning of a content's first file that is long enough for it to stand nowhere else.
fn beginning_of(scene: &Scene, content: u64) -> Option<Vec<u8>> {
    const LENGTH: usize = 256;
    let cid = scene.model().content(content)?.cid.clone()?;
    let target = scene.scratch.join("sabotaged");
    scene.field.run(0, ["get", &cid, "-o", &target.to_string_lossy()]).filter(|output| output.code == 0)?;
    let inside = tree::survey(&target).into_keys().map(|path| target.join(path));
    let mut beginnings =
        inside.chain([target.clone()]).filter_map(|path| fs::read(path).ok()?.get(..LENGTH).map(Vec::from));
    let found = beginnings.next();
    let _ = if target.is_dir() { fs::remove_dir_all(&target) } else { fs::remove_file(&target) };
    found
}
