//! The rules of the house that a compiler cannot know (`docs/CONTRIBUTING.md`). Each test is one
//! rule; its message names the file and says what to do.

#[path = "house/documents.rs"]
mod documents;
#[path = "house/markdown.rs"]
mod markdown;
#[path = "house/source.rs"]
mod source;
#[path = "house/threats.rs"]
mod threats;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use source::{
    CRATES, Source, closing, everything, files, functions, is_word, read, root, shipped, short,
    split,
};

/// Lines of a file, its tests not counted.
const FILE: usize = 600;
/// Lines of a function.
const FUNCTION: usize = 80;
/// Parameters of a function, `self` not counted.
const PARAMETERS: usize = 5;
/// Variants of an error.
const VARIANTS: usize = 12;
/// Lines of a `main.rs`.
const MAIN: usize = 40;
/// Folders between `src` and a file.
const FOLDERS: usize = 2;

/// Fails with all faults at once and what to do about them.
fn none_of(faults: Vec<String>, remedy: &str) {
    assert!(faults.is_empty(), "\n{}\n\n{remedy}\n", faults.join("\n"));
}

fn all_shipped() -> Vec<Source> {
    CRATES.iter().flat_map(|name| shipped(name)).collect()
}

/// Where `word` stands in `text` as a word of its own.
fn words(text: &str, word: &str) -> Vec<usize> {
    let bytes = text.as_bytes();
    let alone = |at: &usize| {
        let before = at.checked_sub(1).and_then(|at| bytes.get(at));
        let after = bytes.get(at + word.len());
        ![before, after].into_iter().flatten().any(|b| is_word(*b))
    };
    let found = text.match_indices(word).map(|(at, _)| at);
    found.filter(alone).collect()
}

/// Faults wherever a file outside `homes` names `word`.
fn named_elsewhere(word: &str, homes: &[&str]) -> Vec<String> {
    let mut faults = Vec::new();
    for source in everything() {
        let name = source.name();
        if homes.iter().any(|home| name.starts_with(home)) {
            continue;
        }
        for at in words(&source.bare, word) {
            faults.push(format!("{name}:{}: names `{word}`", source.line(at)));
        }
    }
    faults
}

// floors

/// The modules of a crate in the order of their floors.
fn floors(name: &str) -> BTreeMap<String, usize> {
    let lib = shipped(name)
        .into_iter()
        .find(|source| source.name() == format!("{name}/src/lib.rs"));
    let text = lib.map(|lib| lib.shipped).unwrap_or_default();
    let modules = text.lines().filter_map(|line| {
        let (_, name) = line.trim().strip_suffix(';')?.split_once("mod ")?;
        Some(name.to_owned())
    });
    modules.zip(0..).collect()
}

/// The top modules that a file uses: `crate::a`, `crate::{a, b::c}`, and `super` as far up.
fn uses(source: &Source, depth: usize) -> BTreeSet<String> {
    let text = &source.shipped;
    let mut found = BTreeSet::new();
    let up = "super::".repeat(depth);
    for prefix in ["crate::", up.as_str()] {
        for at in words(text, prefix.trim_end_matches(':')) {
            let Some(rest) = text.get(at..).and_then(|rest| rest.strip_prefix(prefix)) else {
                continue;
            };
            let many = rest.starts_with('{').then(|| {
                let end = closing(rest.as_bytes(), 0);
                split(rest.get(1..end).unwrap_or_default())
            });
            for item in many.unwrap_or_else(|| vec![rest.to_owned()]) {
                let item = item.trim();
                let name = item.split(|c: char| !is_word(c as u8)).next();
                found.extend(name.map(str::to_owned));
            }
        }
    }
    found
}

#[test]
fn a_module_uses_only_modules_declared_above_it() {
    let mut faults = Vec::new();
    for name in CRATES {
        let rank = floors(name);
        let src = root().join(name).join("src");
        for source in shipped(name) {
            let below = source.path.strip_prefix(&src).unwrap_or(&source.path);
            let depth = below.components().count();
            let first = below.components().next().map(|part| part.as_os_str());
            let own = first.map(|first| Path::new(first).with_extension(""));
            let own = own.unwrap_or_default().display().to_string();
            let Some(floor) = rank.get(&own) else {
                continue;
            };
            for used in uses(&source, depth) {
                if rank.get(&used).is_some_and(|other| other > floor) {
                    let file = source.name();
                    faults.push(format!("{file}: `{own}` uses `{used}`, declared after it"));
                }
            }
        }
    }
    none_of(
        faults,
        "The order of `mod` lines in lib.rs is the order of the floors. Move what both need to \
         the lower module, pass it as an argument, or, if the order is wrong, change it in lib.rs \
         and in docs/architecture.md.",
    );
}

#[test]
fn every_crate_has_floors() {
    let without = CRATES.iter().filter(|name| floors(name).is_empty());
    let faults = without.map(|name| format!("{name}/src/lib.rs: no `mod` line was found"));
    none_of(
        faults.collect(),
        "Then the check of the floors checks nothing: mend `floors` in tests/tests/house.rs.",
    );
}

#[test]
fn the_client_and_the_node_never_see_each_other() {
    let mut faults = Vec::new();
    for (name, other) in [("client", "node"), ("node", "client"), ("protocol", "node")] {
        let crate_name = format!("farthing_{other}");
        for source in everything() {
            let file = source.name();
            if file.starts_with(&format!("{name}/")) && !words(&source.bare, &crate_name).is_empty()
            {
                faults.push(format!("{file}: names `{crate_name}`"));
            }
        }
        let manifest = root().join(name).join("Cargo.toml");
        if read(&manifest).contains(&format!("farthing-{other}")) {
            faults.push(format!("{name}/Cargo.toml: depends on farthing-{other}"));
        }
    }
    none_of(
        faults,
        "What both sides must agree on belongs in protocol/; what only tests need, in tests/.",
    );
}

// ceilings

#[test]
fn no_file_is_longer_than_six_hundred_lines() {
    let long = all_shipped().into_iter().filter(|s| s.lines > FILE);
    let faults = long.map(|s| format!("{}: {} lines, at most {FILE}", s.name(), s.lines));
    none_of(
        faults.collect(),
        "Give one of its parts a file of its own, named after what it holds.",
    );
}

#[test]
fn no_function_is_longer_than_eighty_lines() {
    let mut faults = Vec::new();
    for source in all_shipped() {
        for f in functions(&source).iter().filter(|f| f.lines > FUNCTION) {
            let place = format!("{}:{}", source.name(), f.line);
            let (name, lines) = (&f.name, f.lines);
            faults.push(format!(
                "{place}: `{name}` has {lines} lines, at most {FUNCTION}"
            ));
        }
    }
    none_of(faults, "Give its steps names: one function for each.");
}

#[test]
fn no_function_takes_more_than_five_parameters() {
    let mut faults = Vec::new();
    for source in all_shipped() {
        let many = functions(&source);
        for f in many.iter().filter(|f| f.parameters > PARAMETERS) {
            let place = format!("{}:{}", source.name(), f.line);
            let (name, count) = (&f.name, f.parameters);
            faults.push(format!(
                "{place}: `{name}` takes {count}, at most {PARAMETERS}"
            ));
        }
    }
    none_of(
        faults,
        "Some of them belong together: a struct that wants a name.",
    );
}

/// The errors of a file: name, line and number of variants.
fn error_sizes(source: &Source) -> Vec<(String, usize, usize)> {
    let text = &source.shipped;
    let sizes = text
        .match_indices("thiserror::Error")
        .filter_map(|(at, _)| {
            let rest = text.get(at..)?;
            let head = rest.find(['{', ';'])?;
            let (_, name) = rest.get(..head)?.split_once("enum ")?;
            let end = closing(rest.as_bytes(), head);
            let variants = split(rest.get(head + 1..end)?).len();
            Some((name.trim().to_owned(), source.line(at), variants))
        });
    sizes.collect()
}

#[test]
fn no_error_has_more_than_twelve_variants() {
    let mut faults = Vec::new();
    for source in all_shipped() {
        for (name, line, count) in error_sizes(&source) {
            if count > VARIANTS {
                let place = format!("{}:{line}", source.name());
                faults.push(format!("{place}: `{name}` has {count}, at most {VARIANTS}"));
            }
        }
    }
    none_of(
        faults,
        "An error is the caller's decision: give each operation its own, or gather the variants \
         that call for the same decision into one.",
    );
}

#[test]
fn a_main_is_a_table_of_contents() {
    let mains = all_shipped()
        .into_iter()
        .filter(|s| s.path.file_name().is_some_and(|name| name == "main.rs"));
    let long = mains.filter(|s| s.lines > MAIN);
    let faults = long.map(|s| format!("{}: {} lines, at most {MAIN}", s.name(), s.lines));
    none_of(
        faults.collect(),
        "Move what it does into the library: cli.rs.",
    );
}

#[test]
fn no_folder_is_nested_deeper_than_two_below_src() {
    let mut faults = Vec::new();
    for name in CRATES {
        let src = root().join(name).join("src");
        for path in source::files(&src, "rs") {
            let below = path.strip_prefix(&src).unwrap_or(&path);
            if below.components().count() > FOLDERS + 1 {
                faults.push(source::short(&path));
            }
        }
    }
    none_of(
        faults,
        "Two folders below src are enough: what needs a third is a module of its own.",
    );
}

// names

#[test]
fn a_file_is_a_noun_and_no_drawer() {
    const DRAWERS: [&str; 9] = [
        "utils", "util", "common", "types", "manager", "helpers", "helper", "misc", "core",
    ];
    let drawer = |source: &Source| {
        let name = source.name();
        let mut parts = name.split('/').map(|part| part.trim_end_matches(".rs"));
        parts.any(|part| DRAWERS.contains(&part))
    };
    let faults = everything().into_iter().filter(drawer).map(|s| s.name());
    none_of(
        faults.collect(),
        "Name the file after the one thing it holds, and let it hold that.",
    );
}

#[test]
fn a_module_with_children_is_a_file_beside_its_folder() {
    let faults = everything().into_iter().map(|source| source.name());
    none_of(
        faults.filter(|name| name.ends_with("/mod.rs")).collect(),
        "Write `foo.rs` beside `foo/`, not `foo/mod.rs`.",
    );
}

#[test]
fn tests_share_their_binaries() {
    const ALONE: [&str; 7] = [
        "house.rs",
        "vectors.rs",
        // They load the machine: where tests share a process, they would run beside others.
        "chaos_alone.rs",
        "crowd_of_streams.rs",
        "demo_alone.rs",
        // They read all that their process logs.
        "secrets.rs",
        "x402_secrets.rs",
    ];
    const SHARED: [&str; 4] = ["gateway", "purchases", "router", "x402"];
    let folder = root().join("tests/tests");
    let mut faults = Vec::new();
    for path in files(&folder, "rs") {
        let place = path.strip_prefix(&folder).expect("is below").to_path_buf();
        let parts: Vec<_> = place.iter().map(|part| part.to_string_lossy()).collect();
        let is_missing = match parts.as_slice() {
            [name] => !ALONE.contains(&name.as_ref()),
            [group, name] if SHARED.contains(&group.as_ref()) => {
                let main = read(&folder.join(group.as_ref()).join("main.rs"));
                let module = name.trim_end_matches(".rs");
                module != "main" && !main.contains(&format!("mod {module};"))
            }
            // A folder of a module's own, or a binary nobody has counted.
            [.., name] => name == "main.rs",
            [] => false,
        };
        if is_missing {
            faults.push(short(&path));
        }
    }
    none_of(
        faults,
        "Make it a module of purchases/, x402/, gateway/ or router/ and name it in their main.rs: a binary of its own takes 170 MB.",
    );
}

#[test]
fn the_top_level_holds_only_what_belongs_there() {
    const ALLOWED: [&str; 13] = [
        "Cargo.toml",
        "Cargo.lock",
        "LICENSE",
        "Makefile",
        "README.md",
        "clippy.toml",
        "deny.toml",
        "rust-toolchain.toml",
        "rustfmt.toml",
        "docs",
        "target",
        "proptest-regressions",
        "tests",
    ];
    let entries = std::fs::read_dir(root()).expect("the workspace's folder can be read");
    let names = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    let strange = names.filter(|name| {
        let ours = CRATES.contains(&name.as_str()) || ALLOWED.contains(&name.as_str());
        !ours && !name.starts_with('.')
    });
    none_of(
        strange.collect(),
        "Move it into one of the crates or docs/; what tools make belongs in target/ or .tools/.",
    );
}

// one file for each dependency we may have to change

#[test]
fn only_the_codec_names_bincode() {
    none_of(
        named_elsewhere("bincode", &["protocol/src/codec.rs"]),
        "Encode and decode through farthing_protocol::codec.",
    );
}

#[test]
fn only_the_engine_of_the_store_names_redb() {
    none_of(
        named_elsewhere("redb", &["protocol/src/store/engine.rs"]),
        "Read and write through farthing_protocol::store.",
    );
}

#[test]
fn only_the_net_names_libp2p() {
    none_of(
        named_elsewhere("libp2p", &["protocol/src/net.rs", "protocol/src/net/"]),
        "Meet peers through farthing_protocol::net.",
    );
}

#[test]
fn only_the_chain_names_alloys_way_to_a_chain() {
    // Numbers, hashes and Solidity types are the standard itself and may be named anywhere.
    const WORDS: [&str; 4] = ["primitives", "sol_types", "sol", "hex"];
    let homes = [
        "protocol/src/chain.rs",
        "protocol/src/chain/",
        // A stock client of another library is handed that library's kind of key.
        "tests/tests/x402/clients.rs",
    ];
    let mut faults = Vec::new();
    for source in everything() {
        let name = source.name();
        if homes.iter().any(|home| name.starts_with(home)) {
            continue;
        }
        for at in words(&source.bare, "alloy") {
            let rest = source.bare.get(at..).unwrap_or_default();
            let Some(rest) = rest.strip_prefix("alloy::") else {
                continue;
            };
            let items = match rest.strip_prefix('{') {
                Some(_) => {
                    let end = closing(rest.as_bytes(), 0);
                    split(rest.get(1..end).unwrap_or_default())
                }
                None => vec![rest.chars().take_while(|c| is_word(*c as u8)).collect()],
            };
            for item in items {
                let first: String = item
                    .trim()
                    .chars()
                    .take_while(|c| is_word(*c as u8))
                    .collect();
                if !WORDS.contains(&first.as_str()) {
                    let line = source.line(at);
                    faults.push(format!("{name}:{line}: names `alloy::{first}`"));
                }
            }
        }
    }
    none_of(faults, "Reach the chain through farthing_protocol::chain.");
}

// code that never stops by itself

#[test]
fn nothing_panics_outside_tests() {
    const STOPS: [&str; 4] = [".unwrap()", "panic!(", "todo!(", "unimplemented!("];
    // The street is a test's tool and may stop a test; the programs beside it may not.
    let street = |source: &Source| {
        let name = source.name();
        name.starts_with("tests/src/") && !name.starts_with("tests/src/bin/")
    };
    let mut faults = Vec::new();
    for source in all_shipped().iter().filter(|source| !street(source)) {
        for stop in STOPS {
            for (at, _) in source.shipped.match_indices(stop) {
                faults.push(format!("{}:{}: {stop}", source.name(), source.line(at)));
            }
        }
    }
    none_of(
        faults,
        "Return an error the caller can act on; `expect` only with an invariant that holds here.",
    );
}

// the checks themselves

/// What a reader of text could stumble over.
const STUMBLING: &str = r####"
//! crate::above and .unwrap()
fn long<T: Fn(u8) -> u8>(&self, a: Map<u8, u8>, b: [u8; 2], c: (u8, u8)) -> Result<(), Error> {
    let text = "fn quoted( { .unwrap()"; /* panic!( /* nested */ */
    let (raw, c) = (r#"redb "bincode" "#, '{');
    match c { '"' => 'a: loop { break 'a }, '\'' => crate::{b::{x, y}, c}::go(), _ => {} }
}

#[derive(Debug, thiserror::Error)]
enum Few { #[error("a, b, c")] One(u8, u8), Two { x: u8, y: u8 } }

#[cfg(test)]
mod tests { fn test() { None.unwrap() } }

fn last() { value.unwrap() }
"####;

#[test]
fn the_checks_are_not_fooled_by_comments_strings_and_tests() {
    let source = Source::of("protocol/src/a.rs".into(), STUMBLING);
    assert_eq!(source.bare.len(), STUMBLING.len());
    for hidden in ["quoted", "redb", "bincode", "panic", "above"] {
        assert!(!source.bare.contains(hidden), "{hidden}: {}", source.bare);
    }
    let found = functions(&source);
    let seen: Vec<_> = found
        .iter()
        .map(|f| (f.name.as_str(), f.line, f.lines, f.parameters))
        .collect();
    assert_eq!(seen, [("long", 3, 5, 3), ("last", 15, 1, 0)]);
    assert_eq!(source.shipped.matches(".unwrap()").count(), 1);
    assert_eq!(source.lines, STUMBLING.lines().count() - 2);
    assert_eq!(uses(&source, 1), BTreeSet::from(["b".into(), "c".into()]));
    assert_eq!(error_sizes(&source), [("Few".to_owned(), 9, 2)]);
}
