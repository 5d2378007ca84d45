//! Every target over its seeds, its kept corpus and a bounded number of mutations, the same ones each time.

use std::path::Path;

use fuzzing::{TARGETS, Target};

/// Mutations of each input of the corpus.
const ROUNDS: u64 = 1000;
/// An eighth of what the server takes, since tests are built without optimization.
const LARGEST: usize = 3 << 17;
/// Almost as deep as JSON may be where it is kept, and where it is passed over.
const DEPTHS: [usize; 2] = [390, 9_980];
/// The stack of a server's thread.
const STACK: usize = 2 << 20;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound.max(1)
    }
}

const TOKENS: &[&[u8]] = &[
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b":",
    b",",
    b"null",
    b"-1",
    b"1e309",
    b"9223372036854775808",
    b"\\u0000",
    b"\xff",
    b"\xed\xa0\x80",
    b"\0",
    b"..",
    b"/",
    b"%2f",
    b"&a",
    b"*a",
    b"<<: ",
    b"$patch",
    b"metadata",
    b"spec",
];

/// One small change.
fn mutate(random: &mut Random, data: &mut Vec<u8>, other: &[u8]) {
    let at = random.below(data.len() + 1);
    match random.below(7) {
        0 if !data.is_empty() => {
            let last = data.len() - 1;
            data[at.min(last)] ^= 1 << random.below(8);
        }
        1 if !data.is_empty() => {
            data.remove(at.min(data.len() - 1));
        }
        2 => {
            let token = TOKENS[random.below(TOKENS.len())];
            data.splice(at..at, token.iter().copied());
        }
        3 => data.insert(at, random.below(256) as u8),
        4 => data.truncate(at),
        5 => {
            // A piece of itself once more.
            let end = at + random.below(data.len() - at + 1).min(64);
            let piece = data[at..end].to_vec();
            data.splice(at..at, piece);
        }
        _ => {
            let from = random.below(other.len() + 1);
            let end = from + random.below(other.len() - from + 1);
            data.splice(at..at, other[from..end].iter().copied());
        }
    }
}

fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let mut inputs: Vec<Vec<u8>> = target.seeds.iter().map(|seed| seed.to_vec()).collect();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target.name);
    if let Ok(entries) = std::fs::read_dir(folder) {
        let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
        paths.sort();
        inputs.extend(paths.iter().map(|path| std::fs::read(path).expect("an input")));
    }
    inputs
}

fn run(target: &Target, data: &[u8]) {
    let outcome = std::panic::catch_unwind(|| (target.run)(data));
    assert!(
        outcome.is_ok(),
        "{} fails on {:?}",
        target.name,
        String::from_utf8_lossy(&data[..data.len().min(2000)])
    );
}

fn bounded(name: &str) {
    let target = fuzzing::target(name).expect("a target");
    let thread = std::thread::Builder::new().stack_size(STACK).spawn(move || {
        let inputs = corpus(target);
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for input in &inputs {
            run(target, input);
            for _ in 0..ROUNDS {
                let mut data = input.clone();
                for _ in 0..=random.below(6) {
                    let other = &inputs[random.below(inputs.len())];
                    mutate(&mut random, &mut data, other);
                }
                run(target, &data);
            }
        }
    });
    thread.expect("a thread").join().expect("no panic");
}

macro_rules! bounded {
    ($($name:ident),*) => {
        $(#[test]
        fn $name() {
            bounded(stringify!($name));
        })*

        #[test]
        fn every_target_has_a_test() {
            let tested = [$(stringify!($name)),*];
            assert!(TARGETS.iter().all(|target| tested.contains(&target.name)));
        }
    };
}

bounded!(json, yaml, protobuf, cbor, patch, apply, cel, definition, selector, route, spdy, websocket);

/// Large bodies of shapes that punish what is quadratic or recursive. With work in proportion to
/// the square of the size this would not end.
#[test]
fn large_inputs() {
    let repeat = |open: &str, middle: &str, close: &str| -> Vec<u8> {
        let count = LARGEST / (open.len() + close.len());
        [open.repeat(count), middle.to_owned(), close.repeat(count)].concat().into_bytes()
    };
    let list = |head: &str, item: &dyn Fn(usize) -> String, tail: &str| -> Vec<u8> {
        let mut out = head.to_owned();
        for index in 0.. {
            if out.len() > LARGEST {
                break;
            }
            if index > 0 {
                out.push(',');
            }
            out.push_str(&item(index));
        }
        out.push_str(tail);
        out.into_bytes()
    };
    let deep = |depth: usize, head: &str, tail: &str| {
        [head, &"{\"a\":[".repeat(depth / 2), "1", &"]}".repeat(depth / 2), tail].concat().into_bytes()
    };
    let schema = "{\"spec\":{\"versions\":[{\"schema\":{\"openAPIV3Schema\":{\"default\":";
    let end = "}}}]}}";
    let mut inputs: Vec<(&str, Vec<u8>)> = vec![
        ("json", repeat("p{\"a\":", "1", "}")),
        ("json", repeat("[", "", "]")),
        ("json", list("p{", &|i| format!("\"k{i}\":1"), "}")),
        ("json", list("p{\"metadata\":{\"labels\":{", &|i| format!("\"k{i}\":\"v\""), "}}}")),
        ("json", list("p{\"spec\":{\"containers\":[", &|i| format!("{{\"name\":\"c{i}\"}}"), "]}}")),
        (
            "json",
            list(
                "p{\"spec\":{\"containers\":[{\"name\":\"c\",\"ports\":[",
                &|_| "{\"containerPort\":80}".into(),
                "]}]}}",
            ),
        ),
        (
            "json",
            list(
                "p{\"spec\":{\"tolerations\":[",
                &|i| format!("{{\"key\":\"k{i}\",\"operator\":\"Exists\"}}"),
                "]}}",
            ),
        ),
        ("yaml", repeat("[", "", "]")),
        ("yaml", repeat("- ", "x", "")),
        (
            "yaml",
            [b"x".as_slice(), "[&a ".repeat(350).as_bytes(), &list("", &|_| "a".into(), &"]".repeat(350))]
                .concat(),
        ),
        ("yaml", list("x[", &|_| "a".into(), "]")),
        ("protobuf", [b"p".to_vec(), vec![0x12; LARGEST]].concat()),
        ("cbor", [b"p".to_vec(), vec![0x81; LARGEST]].concat()),
        ("cbor", [b"p".to_vec(), vec![0x9f; LARGEST]].concat()),
        ("patch", list("p{}\0[", &|_| "{\"op\":\"add\",\"path\":\"/a\",\"value\":{}}".into(), "]")),
        (
            "patch",
            list("p{\"a\":[1]}\0[", &|_| "{\"op\":\"copy\",\"from\":\"/a\",\"path\":\"/a/-\"}".into(), "]"),
        ),
        (
            "patch",
            list(
                "p{\"spec\":{\"containers\":[]}}\0{\"spec\":{\"containers\":[",
                &|i| format!("{{\"name\":\"c{i}\"}}"),
                "]}}",
            ),
        ),
        (
            "apply",
            list(
                "p{}\0{\"spec\":{\"containers\":[",
                &|i| format!("{{\"name\":\"c{i}\",\"image\":\"i\"}}"),
                "]}}",
            ),
        ),
        ("apply", list("p{}\0{\"metadata\":{\"finalizers\":[", &|i| format!("\"f{i}\""), "]}}")),
        // As long as an expression may be.
        ("cel", format!("[{}]", vec!["self.n + 1"; 7000].join(", ")).into_bytes()),
        ("cel", format!("{}.b", vec!["object.?a"; 9000].join(" + ")).into_bytes()),
        ("cel", format!("object{}", ".?a[?1]".repeat(9000)).into_bytes()),
        ("cel", "self.l.map(x, ".repeat(200).into_bytes()),
        ("cel", [&*"self.l.all(x, ".repeat(80), "true", &*")".repeat(80)].concat().into_bytes()),
        ("cel", list("", &|_| "(".into(), "")),
        (
            "definition",
            list(
                "{\"type\":\"object\",\"properties\":{",
                &|i| format!("\"p{i}\":{{\"type\":\"string\"}}"),
                "}}\0{}",
            ),
        ),
        (
            "definition",
            list(
                "{\"type\":\"object\",\"allOf\":[",
                &|i| format!("{{\"properties\":{{\"p{i}\":{{\"minLength\":1}}}}}}"),
                "]}\0{}",
            ),
        ),
        (
            "definition",
            list(
                "{\"type\":\"object\",\"x-kubernetes-validations\":[",
                &|i| format!("{{\"rule\":\"self.metadata.name != '{i}'\"}}"),
                "]}\0{}",
            ),
        ),
        (
            "definition",
            list(
                "{\"type\":\"object\",\"properties\":{\"l\":{\"type\":\"array\",\"x-kubernetes-list-type\":\"set\",\"items\":{\"type\":\"integer\"}}}}\0{\"l\":[",
                &|i| i.to_string(),
                "]}",
            ),
        ),
        ("selector", list("", &|i| format!("k{i}=v"), "")),
        ("selector", list("k in (", &|i| format!("v{i}"), ")")),
        ("selector", repeat("(", "", ")")),
        ("route", repeat("/a", "", "")),
        ("route", list("GET /?", &|i| format!("&k{i}=v"), "")),
        ("spdy", vec![0x80; LARGEST]),
        ("websocket", vec![0x82; LARGEST]),
    ];
    for depth in DEPTHS {
        inputs.extend([
            ("json", deep(depth, "p", "")),
            ("json", deep(depth, "p{\"x\":", "}")),
            ("json", deep(depth, &format!("c{schema}"), end)),
            ("patch", deep(depth, "p{}\0", "")),
            ("patch", deep(depth, "p", "\0{}")),
            ("patch", deep(depth, &format!("c{{}}\0{schema}"), end)),
            ("apply", deep(depth, "p{}\0", "")),
            ("apply", deep(depth, &format!("c{{}}\0{schema}"), end)),
        ]);
    }
    for (name, data) in inputs {
        let thread = std::thread::Builder::new().stack_size(STACK);
        let target = fuzzing::target(name).expect("a target");
        thread.spawn(move || run(target, &data)).expect("a thread").join().expect("no panic");
    }
}
