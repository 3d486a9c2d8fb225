//! What befalls the machines, and when it is undone.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use rand::{Rng, rngs::StdRng, seq::SliceRandom};

use super::{COPIES, Scene, field::Left, judge, work};
use crate::process::wait::a_tick;

/// How long a repair may take, all machines being there: several delays, and a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// What is undone later, and when.
#[derive(Debug)]
struct Undo {
    at: Instant,
    places: Vec<usize>,
    what: Ill,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ill {
    Down,
    Cut,
    Full,
}

/// Whoever does it.
struct Harm<'a> {
    scene: &'a Scene,
    random: StdRng,
    undos: Vec<Undo>,
    /// Machines with damaged bits that nobody read yet.
    flipped: BTreeSet<usize>,
    /// When no more harm is done until all is repaired.
    calm_at: Option<Instant>,
    calm_since: Option<Instant>,
}

/// Does harm until the time is over, then undoes what is left.
pub fn run(scene: &Scene) {
    let mut harm = Harm {
        random: scene.chance(1),
        scene,
        undos: Vec::new(),
        flipped: BTreeSet::new(),
        calm_at: None,
        calm_since: None,
    };
    let mut next = Instant::now() + Duration::from_secs(2);
    while !scene.log.is_over() && scene.log.elapsed() < scene.plan.time {
        a_tick();
        harm.undo(Instant::now());
        harm.look_for_fallen();
        if harm.is_calm() {
            harm.wait_for_repair();
        } else if Instant::now() >= next {
            next = Instant::now() + Duration::from_millis(harm.random.random_range(500..4000));
            harm.strike();
        }
    }
    scene.log.event("the harm is over");
    harm.undo(Instant::now() + Duration::from_secs(1_000_000));
    // What is damaged and was not read is found now, as a scrub would.
    let until = Instant::now() + PATIENCE;
    while !harm.flipped.is_empty() && !scene.log.is_over() && Instant::now() < until {
        a_tick();
        harm.read_flipped();
    }
}

impl Harm<'_> {
    fn strike(&mut self) {
        match self.random.random_range(0..12) {
            0..4 => self.kill(),
            4..6 => self.wipe(),
            6..9 => self.cut(),
            9..11 => self.flip(),
            _ => self.fill(),
        }
    }

    /// A machine that nothing ails, if another may be away.
    fn victim(&mut self) -> Option<usize> {
        let ill: BTreeSet<usize> = self.undos.iter().flat_map(|undo| undo.places.iter().copied()).collect();
        let count = self.scene.field.count();
        if ill.len() >= count - COPIES {
            return None;
        }
        let mut well: Vec<usize> = (0..count).filter(|place| !ill.contains(place)).collect();
        well.shuffle(&mut self.random);
        well.pop()
    }

    /// Later by `least` to `most` seconds, mostly towards the lower end.
    fn later(&mut self, least: f64, most: f64) -> Instant {
        let share: f64 = self.random.random_range(0.0..1.0);
        Instant::now() + Duration::from_secs_f64((most - least).mul_add(share * share, least))
    }

    fn kill(&mut self) {
        let Some(place) = self.victim() else { return };
        let at = self.later(0.0, 12.0);
        self.event(format!("{place} is killed"));
        self.scene.log.count("kills");
        self.scene.field.kill(place);
        self.undos.push(Undo { at, places: vec![place], what: Ill::Down });
    }

    fn wipe(&mut self) {
        let Some(place) = self.victim() else { return };
        if !self.scene.model().may_harm(place) {
            return;
        }
        let left = if self.random.random_range(0..5) < 3 { Left::Identity } else { Left::Nothing };
        let at = self.later(0.0, 8.0);
        self.event(format!("{place} loses its disk and keeps: {left:?}"));
        self.scene.log.count("wipes");
        self.scene.field.kill(place);
        self.destroys(place);
        if let Err(error) = self.scene.field.wipe(place, left) {
            self.scene.log.found("broken", format!("{place} cannot be wiped: {error}"));
        }
        self.flipped.remove(&place);
        self.undos.push(Undo { at, places: vec![place], what: Ill::Down });
    }

    fn flip(&mut self) {
        let Some(place) = self.victim() else { return };
        if !self.scene.model().may_harm(place) {
            return;
        }
        let stopped = self.random.random_range(0..2) == 0;
        let bits = self.random.random_range(1..4);
        if stopped {
            self.scene.field.kill(place);
        }
        self.destroys(place);
        for _ in 0..bits {
            match self.scene.field.flip(place, &mut self.random) {
                Ok(Some(at)) => {
                    self.event(format!(
                        "{place} has a bit turned over{}: {at}",
                        if stopped { " while it is down" } else { "" }
                    ));
                    self.scene.log.count("flips");
                    self.flipped.insert(place);
                }
                Ok(None) => {}
                Err(error) => self.event(format!("{place} has no bit turned over: {error}")),
            }
        }
        if stopped {
            let at = self.later(0.0, 3.0);
            self.undos.push(Undo { at, places: vec![place], what: Ill::Down });
        }
    }

    fn cut(&mut self) {
        let mut places = Vec::new();
        let most = self.random.random_range(1..=self.scene.field.count() / 2);
        let at = self.later(1.0, 28.0);
        while places.len() < most {
            let Some(place) = self.victim() else { break };
            places.push(place);
            self.undos.push(Undo { at, places: vec![place], what: Ill::Cut });
        }
        if !places.is_empty() {
            self.event(format!("{places:?} are cut off"));
            self.scene.log.count("cuts");
            self.scene.field.cut(&places);
        }
    }

    fn fill(&mut self) {
        let place = self.scene.field.fillable(&mut self.random);
        let ill = self.undos.iter().any(|undo| undo.places.contains(&place));
        if ill || self.victim().is_none() {
            return;
        }
        let at = self.later(3.0, 20.0);
        self.event(format!("{place} is filled up"));
        self.scene.log.count("fills");
        if let Err(reason) = self.scene.field.fill(place) {
            self.scene.log.found("broken", format!("{place} did not come back: {reason}"));
        }
        self.undos.push(Undo { at, places: vec![place], what: Ill::Full });
    }

    /// Copies are gone: a calm comes, in which they are made again.
    fn destroys(&mut self, place: usize) {
        self.scene.model().harm(place);
        if self.calm_at.is_none() {
            self.calm_at = Some(self.later(2.0, 20.0));
        }
    }

    fn undo(&mut self, now: Instant) {
        let (due, left) = std::mem::take(&mut self.undos).into_iter().partition(|undo| undo.at <= now);
        self.undos = left;
        let due: Vec<Undo> = due;
        for Undo { places, what, .. } in due {
            let field = &self.scene.field;
            let outcome = match what {
                Ill::Down => {
                    self.scene.log.count("restarts");
                    field.restart(places[0])
                }
                Ill::Cut => {
                    field.mend(&places);
                    Ok(())
                }
                Ill::Full => field.empty(places[0]),
            };
            let told = match what {
                Ill::Down => "is there again",
                Ill::Cut => "is not cut off any more",
                Ill::Full => "has room again",
            };
            match outcome {
                Ok(()) => self.event(format!("{} {told}", places[0])),
                Err(reason) => self.scene.log.found("broken", format!("{} did not come back: {reason}", places[0])),
            }
        }
    }

    /// A daemon that ended by itself.
    fn look_for_fallen(&self) {
        let down = |place| self.undos.iter().any(|undo| undo.what == Ill::Down && undo.places.contains(&place));
        if let Some((place, said)) = self.scene.field.fallen(|place| !down(place)) {
            self.scene.log.found("broken", format!("{place} ended by itself: {said}"));
        }
    }

    fn is_calm(&self) -> bool {
        self.calm_at.is_some_and(|at| Instant::now() >= at)
    }

    fn wait_for_repair(&mut self) {
        if !self.undos.is_empty() {
            return;
        }
        let since = *self.calm_since.get_or_insert_with(Instant::now);
        self.read_flipped();
        let outcome = if self.flipped.is_empty() { judge::repaired(self.scene) } else { Err("damage".to_owned()) };
        match outcome {
            Ok(()) => {
                let took = since.elapsed().as_secs();
                self.event(format!("all is repaired, {took} s after the last machine was back"));
                self.scene.log.count("repairs");
                self.scene.log.at_least("repair_longest_s", took);
                self.calm_at = None;
                self.calm_since = None;
            }
            Err(why) if since.elapsed() > PATIENCE => {
                self.scene.log.found("misplaced", format!("not repaired after {} s: {why}", PATIENCE.as_secs()));
            }
            // It is looked again after a while: a look asks every machine for all that it has.
            Err(_) => (0..10).for_each(|_| a_tick()),
        }
    }

    /// Has each damaged machine look at all that it has, manifests too, and every kept content read from it, which must be
    /// whole: damage is found by reading.
    fn read_flipped(&mut self) {
        let scene = self.scene;
        let verified = |place| scene.field.run(place, ["verify"]).is_some_and(|output| output.code == 0);
        self.flipped.retain(|place| !(verified(*place) && work::read_all(scene, *place)));
    }

    fn event(&self, text: impl AsRef<str>) {
        self.scene.log.event(text);
    }
}
