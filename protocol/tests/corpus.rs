//! Replays what fuzzing found: every input of `fuzz/corpus/<decoder>/` goes through its decoder, which must not panic.

use std::{collections::BTreeSet, fs, path::Path};

use p2p_protocol::decoders::DECODERS;

#[test]
fn every_corpus_is_replayed() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    for (name, decoder) in DECODERS {
        let corpus = fuzz.join("corpus").join(name);
        let inputs = fs::read_dir(&corpus).unwrap_or_else(|error| panic!("{}: {error}", corpus.display()));
        let mut replayed = 0;
        for input in inputs {
            let path = input.expect("a readable corpus").path();
            decoder(&fs::read(&path).expect("a readable input"));
            replayed += 1;
        }
        assert!(replayed > 0, "the corpus of {name} is empty");
    }
}

#[test]
fn every_decoder_has_its_fuzz_target_and_no_other_is_there() {
    let targets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/fuzz_targets");
    let there: BTreeSet<String> = fs::read_dir(targets)
        .expect("the fuzz targets")
        .map(|entry| entry.expect("readable").path().file_stem().expect("a name").to_string_lossy().into_owned())
        .collect();
    let wanted: BTreeSet<String> = DECODERS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(there, wanted);
}
