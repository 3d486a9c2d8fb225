//! Parts of the keyspace: half-open ranges, and sets of them.

use std::collections::BTreeMap;

use crate::key::Key;

/// The keys from `from` on and before `to`; without a `to`, all from `from` on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// The first key.
    pub from: Key,
    /// The first key behind it.
    pub to: Option<Key>,
}

impl Span {
    /// Every key.
    pub const ALL: Self = Self { from: Key([0; 32]), to: None };

    /// One key alone.
    pub fn of(key: Key) -> Self {
        Self { from: key, to: after(&key) }
    }

    /// The keys that share the first `bits` bits of `start`, whose other bits are zero.
    pub fn of_prefix(start: Key, bits: u32) -> Self {
        let mut to = start;
        // One more in the place of the last shared bit; a carry out of the first bit means that nothing is behind it.
        for at in (0..bits as usize).rev() {
            let mask = 0x80 >> (at % 8);
            to.0[at / 8] ^= mask;
            if to.0[at / 8] & mask != 0 {
                return Self { from: start, to: Some(to) };
            }
        }
        Self { from: start, to: None }
    }

    /// Whether `key` is in it.
    pub fn contains(&self, key: &Key) -> bool {
        *key >= self.from && self.to.is_none_or(|to| *key < to)
    }
}

/// The key behind `key`; `None` for the last.
pub fn after(key: &Key) -> Option<Key> {
    let mut next = *key;
    for byte in next.0.iter_mut().rev() {
        let (sum, carried) = byte.overflowing_add(1);
        *byte = sum;
        if !carried {
            return Some(next);
        }
    }
    None
}

/// The key before `key`; `None` before the first.
pub fn before(key: &Key) -> Option<Key> {
    let mut previous = *key;
    for byte in previous.0.iter_mut().rev() {
        let (difference, borrowed) = byte.overflowing_sub(1);
        *byte = difference;
        if !borrowed {
            return Some(previous);
        }
    }
    None
}

/// A set of keys as disjoint spans that do not touch.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Spans {
    /// By the first key of each: the first key behind it.
    spans: BTreeMap<Key, Option<Key>>,
}

impl Spans {
    /// No key.
    pub fn new() -> Self {
        Self::default()
    }

    /// Every key.
    pub fn all() -> Self {
        Self::from_iter([Span::ALL])
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// How many spans there are.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// The spans, in order.
    pub fn iter(&self) -> impl Iterator<Item = Span> + '_ {
        self.spans.iter().map(|(from, to)| Span { from: *from, to: *to })
    }

    /// Whether `key` is in one.
    pub fn contains(&self, key: &Key) -> bool {
        self.spans.range(..=*key).next_back().is_some_and(|(_, to)| to.is_none_or(|to| *key < to))
    }

    /// Whether it has all of a span, or a part; `None`: nothing of it.
    pub fn covers(&self, span: &Span) -> Option<bool> {
        let before = self.spans.range(..=span.from).next_back().filter(|(_, to)| to.is_none_or(|to| to > span.from));
        if let Some((_, to)) = before {
            return Some(to.is_none_or(|to| span.to.is_some_and(|end| end <= to)));
        }
        let next = self.spans.range(span.from..).next();
        next.filter(|(from, _)| span.to.is_none_or(|end| **from < end)).map(|_| false)
    }

    /// Adds a span; those that it overlaps or touches become one with it.
    pub fn insert(&mut self, span: Span) {
        let Span { mut from, mut to } = span;
        if to.is_some_and(|to| to <= from) {
            return;
        }
        // The one before may reach into it; of those behind `from`, all that begin up to its end.
        let before = self.spans.range(..from).next_back().filter(|(_, end)| end.is_none_or(|end| end >= from));
        let inside = self.spans.range(from..).take_while(|(start, _)| to.is_none_or(|to| **start <= to));
        let touching: Vec<Key> = before.into_iter().chain(inside).map(|(start, _)| *start).collect();
        for start in touching {
            let end = self.spans.remove(&start).flatten();
            from = from.min(start);
            to = to.zip(end).map(|(a, b)| a.max(b));
        }
        self.spans.insert(from, to);
    }

    /// Takes all keys of a span away. Cost: O(log n) and what it touches.
    pub fn remove(&mut self, span: Span) {
        if span.to.is_some_and(|to| to <= span.from) {
            return;
        }
        let reaches = |end: &Option<Key>| end.is_none_or(|end| end > span.from);
        let before = self.spans.range(..span.from).next_back().filter(|(_, end)| reaches(end));
        let inside = self.spans.range(span.from..).take_while(|(start, _)| span.to.is_none_or(|to| **start < to));
        let cut: Vec<Key> = before.into_iter().chain(inside).map(|(start, _)| *start).collect();
        for start in cut {
            let end = self.spans.remove(&start).flatten();
            if start < span.from {
                self.spans.insert(start, Some(span.from));
            }
            if let Some(to) = span.to
                && end.is_none_or(|end| to < end)
            {
                self.spans.insert(to, end);
            }
        }
    }

    /// The keys that are in both. Cost: O(n) of the two.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let (mut both, mut others) = (BTreeMap::new(), other.spans.iter().peekable());
        let earlier = |a: Option<Key>, b: Option<Key>| match (a, b) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        for (from, to) in &self.spans {
            while let Some((start, end)) = others.peek().copied() {
                let last = earlier(*to, *end);
                if last.is_none_or(|last| last > *from.max(start)) {
                    both.insert(*from.max(start), last);
                }
                // The one that ends first overlaps nothing more of the other set.
                if to.is_some() && (end.is_none() || *to < *end) {
                    break;
                }
                others.next();
            }
        }
        Self { spans: both }
    }

    /// The keys that are in this one and not in the other.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let mut rest = self.clone();
        for span in other.iter() {
            rest.remove(span);
        }
        rest
    }

    /// A short form: for each span where it begins and ends, without the zeros behind, each with its length before it; an
    /// end behind every key is `ff`.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut put = |key: &Key| {
            let length = key.0.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            // At most 32.
            bytes.push(length as u8);
            bytes.extend_from_slice(&key.0[..length]);
        };
        let mut open = false;
        for span in self.iter() {
            put(&span.from);
            match span.to {
                Some(to) => put(&to),
                None => open = true,
            }
        }
        if open {
            bytes.push(0xff);
        }
        bytes
    }

    /// Reads the short form; `None` where it is not that.
    pub fn from_bytes(mut bytes: &[u8]) -> Option<Self> {
        let mut take = || -> Option<Option<Key>> {
            let (length, rest) = bytes.split_first()?;
            if *length == 0xff {
                bytes = rest;
                return Some(None);
            }
            let (head, rest) = rest.split_at_checked(usize::from(*length))?;
            let mut key = Key([0; 32]);
            key.0.get_mut(..head.len())?.copy_from_slice(head);
            bytes = rest;
            Some(Some(key))
        };
        let mut spans = Self::new();
        loop {
            match take() {
                None => return Some(spans),
                Some(None) => return None,
                Some(Some(from)) => spans.insert(Span { from, to: take()? }),
            }
        }
    }

    /// Takes the first span out.
    pub fn pop_first(&mut self) -> Option<Span> {
        self.spans.pop_first().map(|(from, to)| Span { from, to })
    }
}

impl FromIterator<Span> for Spans {
    fn from_iter<I: IntoIterator<Item = Span>>(spans: I) -> Self {
        let mut all = Self::new();
        spans.into_iter().for_each(|span| all.insert(span));
        all
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// Spans over a keyspace of 17 points: `16` is behind the last.
    fn span((from, to): (u8, u8)) -> Span {
        let at = |point: u8| Key([&[point << 4][..], &[0; 31]].concat().try_into().expect("32 bytes"));
        Span { from: at(from), to: (to < 16).then(|| at(to)) }
    }

    fn points(spans: &Spans) -> BTreeSet<u8> {
        (0..16).filter(|point| spans.contains(&span((*point, 16)).from)).collect()
    }

    proptest! {
        #[test]
        fn spans_are_sets(a in vec((0..16_u8, 0..=16_u8), 0..8), b in vec((0..16_u8, 0..=16_u8), 0..8)) {
            let set = |list: &[(u8, u8)]| -> BTreeSet<u8> { list.iter().flat_map(|(from, to)| *from..*to).collect() };
            let of = |list: &[(u8, u8)]| list.iter().copied().map(span).collect::<Spans>();
            let (left, right) = (of(&a), of(&b));
            prop_assert_eq!(points(&left), set(&a));
            prop_assert_eq!(Spans::from_bytes(&left.to_bytes()), Some(left.clone()));
            prop_assert_eq!(points(&left.and(&right)), &set(&a) & &set(&b));
            prop_assert_eq!(points(&left.without(&right)), &set(&a) - &set(&b));
            for &(from, to) in &b {
                let (has, span) = (points(&left), span((from, to)));
                let all: BTreeSet<u8> = (from..to).collect();
                prop_assume!(from < to);
                let some = !has.is_disjoint(&all);
                prop_assert_eq!(left.covers(&span), some.then(|| all.is_subset(&has)));
            }
            let mut last = None;
            for one in left.iter() {
                prop_assert!(last.is_none_or(|last: Option<Key>| last.is_some_and(|last| last < one.from)), "touching");
                last = Some(one.to);
            }
        }
    }

    #[test]
    fn a_prefix_is_a_span_and_a_key_too() {
        let start = Key([&[0b1010_0000][..], &[0; 31]].concat().try_into().expect("32 bytes"));
        let behind = Key([&[0b1100_0000][..], &[0; 31]].concat().try_into().expect("32 bytes"));
        assert_eq!(Span::of_prefix(start, 3), Span { from: start, to: Some(behind) });
        assert_eq!(Span::of_prefix(Key([0; 32]), 0), Span::ALL);
        let last = Key([0xff; 32]);
        assert_eq!(Span::of(last), Span { from: last, to: None });
        assert!(Span::of(start).contains(&start) && !Span::of(start).contains(&after(&start).expect("not the last")));
    }
}
