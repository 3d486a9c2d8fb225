//! Both sides of a session: the [`Initiator`], which learns the difference, and [`respond`].

use std::{cmp::Ordering, collections::VecDeque};

use super::{
    Bound, Id, IdRanges, ReconcileError, Span,
    message::{Part, Writer, decode},
};

/// Into how many parts a range is cut. More parts are fewer rounds and more bytes for a single difference; 16 is what
/// Negentropy settled on.
const PARTS: usize = 16;
/// A range with so many ids is listed instead of cut: the list costs about as much as two sets of fingerprints.
const LISTED: usize = 32;

/// What one session may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReconcileLimits {
    /// The longest message that this side writes, in bytes.
    pub message_bytes: usize,
    /// The most round trips.
    pub rounds: usize,
    /// The most ids that are kept as needed (32 bytes each) until they are taken.
    pub ids: usize,
    /// The most ranges that are open at once (80 bytes each).
    pub ranges: usize,
}

impl Default for ReconcileLimits {
    /// 64 KiB messages; 2,048 round trips, which list four million ids; 262,144 needed ids (8 MiB) that were not taken;
    /// 65,536 open ranges (5 MiB), some twenty full messages.
    fn default() -> Self {
        Self { message_bytes: 64 * 1024, rounds: 2048, ids: 262_144, ranges: 65_536 }
    }
}

/// What to do next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Send this and hand the response to [`Initiator::handle`].
    Send(Vec<u8>),
    /// The difference is known.
    Done,
}

/// The side that asks and learns. Pure: [`initiate`](Self::initiate), then [`handle`](Self::handle) each response.
#[derive(Clone, Debug)]
pub struct Initiator {
    limits: ReconcileLimits,
    rounds: usize,
    /// What is still to be asked, ascending, behind all that is in flight.
    open: VecDeque<Open>,
    /// What was asked last, ascending.
    asked: VecDeque<Span>,
    need: Vec<Id>,
    have: Vec<Id>,
}

#[derive(Clone, Debug)]
struct Open {
    span: Span,
    /// The two sides are known to differ here.
    differs: bool,
}

impl Initiator {
    /// A session that has not begun.
    pub fn new(limits: ReconcileLimits) -> Self {
        let whole = Open { span: Bound::START..Bound::End, differs: false };
        Self {
            limits,
            rounds: 0,
            open: VecDeque::from([whole]),
            asked: VecDeque::new(),
            need: Vec::new(),
            have: Vec::new(),
        }
    }

    /// The first message.
    pub fn initiate(&mut self, set: &impl IdRanges) -> Vec<u8> {
        self.compose(set)
    }

    /// Takes a response; gives the next message, or the end. After an error the session is over.
    pub fn handle(&mut self, set: &impl IdRanges, response: &[u8]) -> Result<Step, ReconcileError> {
        self.rounds += 1;
        if self.rounds > self.limits.rounds {
            return Err(ReconcileError::TooMuch("rounds"));
        }
        let mut differing = Vec::new();
        let mut from = Bound::START;
        for (to, part) in decode(response)? {
            match part {
                Part::Skip => {}
                Part::Fingerprint(theirs) => {
                    let span = self.within_one(from..to)?;
                    if set.fingerprint(&span) != theirs {
                        differing.push(Open { span, differs: true });
                    }
                }
                Part::Ids(theirs) => {
                    let span = self.within_one(from..to)?;
                    let mine = set.ids(&span, set.count(&span));
                    self.compare(&mine, &theirs)?;
                }
            }
            from = to;
        }
        let covered = from;
        let first = self.asked.front().map_or(Bound::START, |span| span.start);
        if covered <= first {
            return Err(ReconcileError::NoProgress);
        }
        // What the response did not get to is asked again, behind what it found.
        for span in self.asked.drain(..).rev() {
            if covered <= span.start {
                self.open.push_front(Open { span, differs: false });
            } else if covered < span.end {
                // A list that was cut off: they do differ, or it would have been skipped as a whole.
                self.open.push_front(Open { span: covered..span.end, differs: true });
            }
        }
        for open in differing.into_iter().rev() {
            self.open.push_front(open);
        }
        if self.open.len() > self.limits.ranges {
            return Err(ReconcileError::TooMuch("ranges"));
        }
        if self.open.is_empty() { Ok(Step::Done) } else { Ok(Step::Send(self.compose(set))) }
    }

    /// What was found since this was called last: ids that this side needs, and those that only it has. Whoever takes them
    /// after each step holds no more than a response lists.
    pub fn take_found(&mut self) -> (Vec<Id>, Vec<Id>) {
        (std::mem::take(&mut self.need), std::mem::take(&mut self.have))
    }

    /// Ids that the other side has and this one has not, ascending in every list that came.
    pub fn need(&self) -> &[Id] {
        &self.need
    }

    /// Ids that this side has and the other has not.
    pub fn have(&self) -> &[Id] {
        &self.have
    }

    /// Round trips so far.
    pub fn rounds(&self) -> usize {
        self.rounds
    }

    /// The range, if it lies within one that was asked.
    fn within_one(&self, span: Span) -> Result<Span, ReconcileError> {
        let after = self.asked.partition_point(|asked| asked.start <= span.start);
        let asked = after.checked_sub(1).and_then(|index| self.asked.get(index));
        match asked {
            Some(asked) if span.end <= asked.end => Ok(span),
            _ => Err(ReconcileError::Unasked),
        }
    }

    fn compare(&mut self, mine: &[Id], theirs: &[Id]) -> Result<(), ReconcileError> {
        let (mut mine, mut theirs) = (mine.iter().peekable(), theirs.iter().peekable());
        loop {
            let order = match (mine.peek(), theirs.peek()) {
                (Some(left), Some(right)) => left.cmp(right),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => return Ok(()),
            };
            let (left, right) = match order {
                Ordering::Less => (mine.next(), None),
                Ordering::Greater => (None, theirs.next()),
                Ordering::Equal => {
                    mine.next();
                    theirs.next();
                    (None, None)
                }
            };
            self.have.extend(left);
            self.need.extend(right);
            if self.need.len() > self.limits.ids {
                return Err(ReconcileError::TooMuch("ids"));
            }
        }
    }

    /// Asks for as much of what is open as fits.
    fn compose(&mut self, set: &impl IdRanges) -> Vec<u8> {
        let mut writer = Writer::new(self.limits.message_bytes);
        while let Some(open) = self.open.pop_front() {
            writer.skip(open.span.start);
            let count = set.count(&open.span);
            if count == 0 || (open.differs && count <= LISTED) {
                if writer.ids_that_fit().is_none_or(|fit| fit < count) {
                    self.open.push_front(open);
                    break;
                }
                writer.ids(open.span.end, &set.ids(&open.span, count));
                self.asked.push_back(open.span);
            } else if open.differs {
                for part in cut(set, &open.span, count) {
                    if writer.fingerprint(part.end, set.fingerprint(&part)) {
                        self.asked.push_back(part);
                    } else {
                        break;
                    }
                }
                if writer.at() < open.span.end {
                    self.open.push_front(Open { span: writer.at()..open.span.end, differs: true });
                    break;
                }
            } else if writer.fingerprint(open.span.end, set.fingerprint(&open.span)) {
                self.asked.push_back(open.span);
            } else {
                self.open.push_front(open);
                break;
            }
        }
        writer.finish()
    }
}

/// Answers an [`Initiator`]'s message in at most `limit` bytes; keeps nothing. Costs a few range queries for each part
/// asked and each part answered, both of which the messages' lengths bound.
pub fn respond(set: &impl IdRanges, request: &[u8], limit: usize) -> Result<Vec<u8>, ReconcileError> {
    let mut writer = Writer::new(limit);
    let mut from = Bound::START;
    for (to, part) in decode(request)? {
        let span = from..to;
        from = to;
        let count = set.count(&span);
        let listed = match part {
            Part::Skip => {
                writer.skip(to);
                continue;
            }
            Part::Fingerprint(theirs) if set.fingerprint(&span) == theirs => {
                writer.skip(to);
                continue;
            }
            Part::Ids(theirs) if theirs.len() == count && set.ids(&span, count) == theirs => {
                writer.skip(to);
                continue;
            }
            Part::Fingerprint(_) => count <= LISTED,
            Part::Ids(_) => true,
        };
        if listed {
            let Some(fit) = writer.ids_that_fit() else { break };
            let ids = set.ids(&span, count.min(fit));
            // The list ends where the first id lies that did not fit.
            let end = if ids.len() < count { set.nth(&span, ids.len()).map(Bound::At) } else { Some(to) };
            match end {
                Some(end) if end > writer.at() => writer.ids(end, &ids),
                _ => break,
            }
        } else {
            for part in cut(set, &span, count) {
                if !writer.fingerprint(part.end, set.fingerprint(&part)) {
                    break;
                }
            }
        }
        if writer.at() < to {
            break;
        }
    }
    Ok(writer.finish())
}

/// Cuts a range of `count` ids into parts of nearly equal numbers, at the shortest bounds that tell the ids apart.
fn cut(set: &impl IdRanges, span: &Span, count: usize) -> Vec<Span> {
    let mut parts = Vec::with_capacity(PARTS);
    let mut from = span.start;
    for part in 1..PARTS {
        let upto = count * part / PARTS;
        let bound = match upto.checked_sub(1).map(|last| (set.nth(span, last), set.nth(span, upto))) {
            Some((Some(below), Some(above))) => Bound::At(shortest_between(&below, &above)),
            _ => continue,
        };
        if bound > from && bound < span.end {
            parts.push(from..bound);
            from = bound;
        }
    }
    parts.push(from..span.end);
    parts
}

/// The shortest beginning of `above`, filled up with zeros, that is greater than `below`.
fn shortest_between(below: &Id, above: &Id) -> Id {
    let common = below.iter().zip(above).take_while(|(left, right)| left == right).count();
    let mut out = [0; 32];
    let length = (common + 1).min(out.len());
    out[..length].copy_from_slice(&above[..length]);
    out
}
