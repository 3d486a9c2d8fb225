//! Samples: what stands for populations too large to run, and what they cost as a whole.

use p2p_protocol::{Key, chance::Chance, duty::Spans, manifest::ENTRY_BYTES};

/// Bytes of one link of a dag-pb node of a manifest, and the most links that one has.
const LINK_BYTES: u64 = 48;
const LINKS: u64 = 1024;
/// How far file sizes are spread: the standard deviation of the logarithm (base e) of a log-normal distribution, which
/// is what file systems have (Douceur and Bolosky, "A large-scale study of file-system contents", 1999).
const SPREAD: f64 = 2.0;

/// What it costs to read the manifest of a file of `entries` chunks over parts of the keyspace, cut into leaves of so
/// many entries: bytes, and chunks that are fetched. Keys are hashes: the leaves cut the keyspace evenly.
pub fn manifest_read(entries: u64, leaf_entries: u64, spans: &Spans) -> (u64, u64) {
    if entries <= p2p_protocol::manifest::MAX_INLINE_ENTRIES as u64 || spans.is_empty() {
        return (0, 0);
    }
    let leaves = entries.div_ceil(leaf_entries);
    let touched = touched(leaves, spans);
    let leaf_bytes = entries.min(leaf_entries) * ENTRY_BYTES as u64;
    let inner = match leaves {
        1 => (0, 0),
        2..=LINKS => (LINK_BYTES * leaves, 1),
        _ => {
            let nodes = leaves.div_ceil(LINKS);
            (LINK_BYTES * (nodes + self::touched(nodes, spans) * LINKS), 1 + self::touched(nodes, spans))
        }
    };
    (touched * leaf_bytes + inner.0, touched + inner.1)
}

/// How many of `parts` even parts of the keyspace the spans touch.
fn touched(parts: u64, spans: &Spans) -> u64 {
    let (mut count, mut behind) = (0, 0);
    for span in spans.iter() {
        let from = (place(&span.from) * parts as f64) as u64;
        // However narrow it is, it lies in one of them.
        let end = span.to.map_or(parts, |to| (place(&to) * parts as f64).ceil() as u64).max(from + 1);
        let first = from.max(behind);
        count += end.saturating_sub(first);
        behind = behind.max(end);
    }
    count
}

/// Where a key stands: 0 up to, not including, 1.
fn place(key: &Key) -> f64 {
    let first = key.0.first_chunk::<8>().copied().map_or(0, u64::from_be_bytes);
    first as f64 / 2_f64.powi(64)
}

/// Sizes of files, in chunks, whose mean is `mean`: log-normal, at least 1.
pub fn sizes(chance: &mut Chance, count: usize, mean: f64) -> Vec<u64> {
    let drawn: Vec<f64> = (0..count).map(|_| (SPREAD * normal(chance)).exp()).collect();
    // A sample of such a distribution has another mean than the whole: it is made to have that of the whole.
    let scale = mean * count as f64 / drawn.iter().sum::<f64>();
    drawn.into_iter().map(|size| (size * scale).round().max(1.0) as u64).collect()
}

/// A number of the standard normal distribution (Box and Muller, 1958).
fn normal(chance: &mut Chance) -> f64 {
    let radius = (-2.0 * (1.0 - chance.fraction()).ln()).sqrt();
    radius * (std::f64::consts::TAU * chance.fraction()).cos()
}

#[cfg(test)]
mod tests {
    use p2p_protocol::duty::Span;

    use super::*;

    fn key(first: u8) -> Key {
        let mut key = [0; 32];
        key[0] = first;
        Key(key)
    }

    #[test]
    fn a_manifest_is_read_by_the_leaves_that_a_part_touches() {
        let quarter: Spans = [Span { from: key(64), to: Some(key(128)) }].into_iter().collect();
        assert_eq!(manifest_read(8, 128, &Spans::all()), (0, 0), "its few entries stand in the publication");
        assert_eq!(manifest_read(100, 128, &quarter), (4000, 1), "one leaf, no node above it");
        assert_eq!(manifest_read(1024, 128, &quarter), (2 * 5120 + 8 * 48, 3));
        assert_eq!(manifest_read(1024, 128, &Spans::all()), (8 * 5120 + 8 * 48, 9));
        assert_eq!(manifest_read(1024, 128, &Spans::new()), (0, 0));
        let narrow: Spans = [Span::of(key(65)), Span::of(key(66))].into_iter().collect();
        assert_eq!(manifest_read(1024, 128, &narrow), (5120 + 8 * 48, 2), "two keys of one leaf");
        let large = 128 * 1024 * 4;
        assert_eq!(manifest_read(large, 128, &narrow), (2 * 5120 + 48 * (4 + 1024), 4), "a node of four below the top");
    }

    #[test]
    fn sizes_have_their_mean_and_are_spread() {
        let sizes = sizes(&mut Chance::new(1), 2000, 1000.0);
        let mean = sizes.iter().sum::<u64>() as f64 / 2000.0;
        let mut sorted = sizes.clone();
        sorted.sort_unstable();
        assert!((990.0..1010.0).contains(&mean), "{mean}");
        assert!((80..250).contains(&sorted[1000]), "the median is e^-2 of the mean: {}", sorted[1000]);
    }
}
