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
    work::{self, Read},
};
use crate::process::{placement, wait::a_tick};

/// How long the end may take: what was removed is freed once every peer that was seen within seven graces compared
/// catalogues, or is away for longer; and a busy machine.
const PATIENCE: Duration = Duration::from_secs(8 * GRACE.as_secs() + 180);
/// Complaints of a kind that are told.
const TOLD: usize = 5;

/// Role by chunk, a store each.
type Stores = Vec<BTreeMap<String, String>>;

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

fn learn_all<'a>(scene: &Scene, contents: impl IntoIterator<Item = &'a u64>) {
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
fn complaints(scene: &Scene) -> Vec<(&'static str, String)> {
    if let Some((place, said)) = scene.field.fallen(|_| true) {
        return vec![("broken", format!("{place} ended by itself: {said}"))];
    }
    let [kept, short, removed, unsure] = [Standing::Kept, Standing::Short, Standing::Removed, Standing::Unsure]
        .map(|standing| scene.model().all(standing));
    learn_all(scene, kept.iter().chain(&short));
    let asked = everybody_knows_all(scene)
        .and_then(|()| Ok((stores(scene)?, at_all(scene, &["ls"])?.into_iter().map(listed).collect::<Vec<_>>())));
    let (stores, listed) = match asked {
        Ok(both) => both,
        Err(why) => return vec![("unequal", why)],
    };
    let mut found = Vec::new();
    let chunks = |content: u64| scene.model().content(content).and_then(|content| content.chunks.clone());
    let cid = |content: u64| scene.model().content(content).and_then(|content| content.cid.clone()).unwrap_or_default();

    for (place, other) in listed.iter().enumerate().skip(1) {
        if let Some(entry) = other.symmetric_difference(&listed[0]).next() {
            found.push(("unequal", format!("the catalogues of 0 and {place} differ in {entry:?}")));
        }
    }
    let roots: BTreeSet<&str> = listed[0].iter().map(|entry| entry.0.as_str()).collect();
    for content in &kept {
        if !roots.contains(cid(*content).as_str()) {
            found.push(("lost", format!("{} ({content}) was acknowledged and is not listed", cid(*content))));
        }
        match chunks(*content) {
            None => found.push(("lost", format!("nobody says of what {} ({content}) consists", cid(*content)))),
            Some(chunks) => found.extend(wrong_places(scene, *content, &chunks, &stores)),
        }
    }
    let listed_still: BTreeSet<String> =
        kept.iter().chain(&short).chain(&unsure).filter_map(|content| chunks(*content)).flatten().collect();
    for content in &removed {
        if roots.contains(cid(*content).as_str()) {
            found.push(("left", format!("{} ({content}) was removed and is listed", cid(*content))));
        }
        for chunk in chunks(*content).unwrap_or_default().difference(&listed_still) {
            let places: Vec<_> = (0..stores.len()).filter(|place| stores[*place].contains_key(chunk)).collect();
            if !places.is_empty() {
                found.push(("left", format!("{chunk} of {content}, which was removed, is at {places:?}")));
            }
        }
    }
    // The worst first.
    found.sort_by_key(|(kind, _)| *kind != "lost");
    found
}

/// Chunks of a content that are nowhere, or are replicas elsewhere than on the k closest.
fn wrong_places(
    scene: &Scene,
    content: u64,
    chunks: &BTreeSet<String>,
    stores: &Stores,
) -> Vec<(&'static str, String)> {
    let peers = scene.field.peers();
    let mut found = Vec::new();
    for chunk in chunks {
        if stores.iter().all(|store| !store.contains_key(chunk)) {
            found.push(("lost", format!("{chunk} of {content} is on no disk")));
            continue;
        }
        let wanted = placement::closest(chunk, peers.iter().map(String::as_str), COPIES);
        let is_replica = |place: &usize| stores[*place].get(chunk).is_some_and(|role| role == "replica");
        let there: BTreeSet<usize> = (0..peers.len()).filter(is_replica).collect();
        let belongs: BTreeSet<usize> = (0..peers.len()).filter(|place| wanted.contains(&&*peers[*place])).collect();
        if there != belongs {
            found.push((
                "misplaced",
                format!("{chunk} of {content} belongs to {belongs:?} and is a replica at {there:?}"),
            ));
        }
    }
    found
}

/// What `ls` says of each entry, as far as it is the same everywhere.
fn listed(lines: Vec<Value>) -> BTreeSet<(String, String)> {
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

/// Destroys the beginning of a file on every disk, behind the machines' backs.
fn sabotage(scene: &Scene) {
    let mut candidates = scene.model().all(Standing::Kept);
    if candidates.is_empty() {
        work::add(scene, 1, 0, None);
        candidates = scene.model().all(Standing::Kept);
    }
    let target = scene.scratch.join("sabotaged");
    for content in candidates {
        let cid = scene.model().content(content).and_then(|content| content.cid.clone()).unwrap_or_default();
        let _ = scene.field.run(0, ["get", &cid, "-o", &target.to_string_lossy(), "--force"]);
        let Ok(bytes) = fs::read(&target) else { continue };
        let _ = fs::remove_file(&target);
        let mut times = 0;
        for place in 0..scene.field.count() {
            scene.field.kill(place);
            times += scene.field.destroy(place, &bytes[..bytes.len().min(256)]).unwrap_or_default();
        }
        scene.log.event(format!("sabotage: the beginning of {content} is destroyed in {times} places"));
        for place in 0..scene.field.count() {
            if let Err(reason) = scene.field.restart(place) {
                scene.log.found("broken", format!("{place} did not come back: {reason}"));
            }
        }
        return;
    }
    scene.log.found("broken", "nothing could be sabotaged");
}
