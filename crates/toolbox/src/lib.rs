//! The debugging kit that the built-in image `carrack.dev/toolbox` holds: one program under many names. It exists so that probes, demos,
//! tests and `kubectl exec|cp` work without any registry; each applet does what is commonly used of its namesake and no more.

#![allow(clippy::disallowed_methods, reason = "applets are plain blocking programs")]

mod eat;
mod fs;
mod http;
mod net;
mod process;
mod resolve;
mod sh;
mod tar;
mod test;
mod text;
mod tls;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

/// How an applet ends: its exit code, or an error to be shown with exit code 1.
pub(crate) type Outcome = Result<u8, Failure>;
type Applet = fn(&[String]) -> Outcome;

/// An error of an applet, as shown to the user.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) text: String,
    pub(crate) code: u8,
}

impl Failure {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), code: 1 }
    }

    pub(crate) fn usage(text: &str) -> Self {
        Self { text: format!("usage: {text}"), code: 2 }
    }

    pub(crate) fn about(what: impl std::fmt::Display, error: impl std::fmt::Display) -> Self {
        Self::new(format!("{what}: {error}"))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        // A reader that went away is no failure worth words.
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self { text: String::new(), code: 141 };
        }
        Self::new(error.to_string())
    }
}

impl From<nix::errno::Errno> for Failure {
    fn from(errno: nix::errno::Errno) -> Self {
        Self::new(errno.desc())
    }
}

const TABLE: &[(&str, Applet)] = &[
    ("[", test::bracket),
    ("base64", text::base64),
    ("basename", text::basename),
    ("cat", text::cat),
    ("chmod", fs::chmod),
    ("cp", fs::cp),
    ("cut", text::cut),
    ("date", process::date),
    ("df", fs::df),
    ("dirname", text::dirname),
    ("dns", net::dns),
    ("eat", eat::main),
    ("echo", text::echo),
    ("env", process::env),
    ("false", process::no),
    ("files", fs::files),
    ("grep", text::grep),
    ("head", text::head),
    ("hostname", process::hostname),
    ("http", http::client),
    ("http-echo", http::echo),
    ("id", process::id),
    ("kill", process::kill),
    ("ln", fs::ln),
    ("ls", fs::ls),
    ("mkdir", fs::mkdir),
    ("mount", fs::mount),
    ("mv", fs::mv),
    ("nslookup", net::dns),
    ("printenv", process::env),
    ("printf", text::printf),
    ("ps", process::ps),
    ("pwd", process::pwd),
    ("readlink", fs::readlink),
    ("rm", fs::rm),
    ("seq", text::seq),
    ("sh", sh::main),
    ("sleep", process::sleep),
    ("sort", text::sort),
    ("stat", fs::stat),
    ("sync", fs::sync),
    ("tail", text::tail),
    ("tar", tar::main),
    ("tcp", net::tcp),
    ("tee", text::tee),
    ("test", test::main),
    ("touch", fs::touch),
    ("tr", text::tr),
    ("true", process::yes),
    ("udp", net::udp),
    ("uname", process::uname),
    ("uniq", text::uniq),
    ("wc", text::wc),
    ("wget", http::client),
    ("whoami", process::whoami),
];

/// Names under which the program may be called, for the image's `/bin`.
pub const APPLETS: &[&str] = &{
    let mut names = [""; TABLE.len()];
    let mut index = 0;
    while index < TABLE.len() {
        names[index] = TABLE[index].0;
        index += 1;
    }
    names
};

pub(crate) fn find(name: &str) -> Option<Applet> {
    TABLE.iter().find(|(known, _)| *known == name).map(|(_, applet)| *applet)
}

/// Runs the applet that `args[0]` names (its last path component), or else the one that `args[1]` names. Call it before any thread
/// exists: `sh` forks.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut args: Vec<String> = args.into_iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let called = |arg: Option<&String>| {
        arg.and_then(|arg| Path::new(arg).file_name()?.to_str().map(str::to_owned)).unwrap_or_default()
    };
    let mut name = called(args.first());
    if find(&name).is_none() && !args.is_empty() {
        args.remove(0);
        name = called(args.first());
    }
    let Some(applet) = find(&name) else {
        eprintln!("toolbox: which applet? {}", APPLETS.join(" "));
        return ExitCode::from(if name.is_empty() || name == "--help" { 0 } else { 127 });
    };
    ExitCode::from(run(&name, applet, &args[1..]))
}

/// Runs an applet and shows its error, if any.
pub(crate) fn run(name: &str, applet: Applet, args: &[String]) -> u8 {
    let outcome = applet(args);
    let flushed = io::stdout().flush();
    match (outcome, flushed) {
        (Ok(code), Ok(())) => code,
        (Ok(_), Err(error)) => Failure::from(error).code,
        (Err(failure), _) => {
            if !failure.text.is_empty() {
                eprintln!("{name}: {}", failure.text);
            }
            failure.code
        }
    }
}

/// Flags with their values.
pub(crate) type Flags<'a> = Vec<(char, &'a str)>;

/// Splits leading short flags (`-la`, `-n 3`) from operands; flags in `with_value` take one. `--` ends them.
pub(crate) fn flags<'a>(
    args: &'a [String],
    known: &str,
    with_value: &str,
    usage: &str,
) -> Result<(Flags<'a>, Vec<&'a str>), Failure> {
    let (mut found, mut operands) = (Vec::new(), Vec::new());
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        if arg == "--" {
            operands.extend(rest.by_ref().map(String::as_str));
        } else if let Some(letters) = arg.strip_prefix('-').filter(|letters| !letters.is_empty()) {
            for (at, letter) in letters.char_indices() {
                if with_value.contains(letter) {
                    let inline = &letters[at + letter.len_utf8()..];
                    let value = if inline.is_empty() {
                        rest.next().map(String::as_str).ok_or_else(|| Failure::usage(usage))?
                    } else {
                        inline
                    };
                    found.push((letter, value));
                    break;
                }
                if !known.contains(letter) {
                    return Err(Failure::usage(usage));
                }
                found.push((letter, ""));
            }
        } else {
            operands.push(arg.as_str());
        }
    }
    Ok((found, operands))
}

/// Whether a flag was given.
pub(crate) fn has(found: &[(char, &str)], letter: char) -> bool {
    found.iter().any(|(known, _)| *known == letter)
}

/// The value of a flag, parsed.
pub(crate) fn value<T: std::str::FromStr>(
    found: &[(char, &str)],
    letter: char,
) -> Result<Option<T>, Failure> {
    match found.iter().rev().find(|(known, _)| *known == letter) {
        None => Ok(None),
        Some((_, text)) => {
            text.parse().map(Some).map_err(|_| Failure::new(format!("-{letter}: {text:?} is not valid")))
        }
    }
}

/// Reads `10`, `1.5s`, `200ms`, `5m`, `1h`, `inf`.
pub(crate) fn duration(text: &str) -> Result<std::time::Duration, Failure> {
    let bad = || Failure::new(format!("{text:?} is not a duration"));
    if matches!(text, "inf" | "infinity") {
        return Ok(std::time::Duration::from_secs(u64::from(u32::MAX)));
    }
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "" | "s" => 1.0,
        "ms" => 0.001,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86400.0,
        _ => return Err(bad()),
    };
    let number: f64 = digits.parse().map_err(|_| bad())?;
    std::time::Duration::try_from_secs_f64(number * factor).map_err(|_| bad())
}

/// Reads `100`, `64k`, `10M`, `1Gi`.
pub(crate) fn size(text: &str) -> Result<u64, Failure> {
    let bad = || Failure::new(format!("{text:?} is not a size"));
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(bad()),
    };
    digits.parse::<u64>().ok().and_then(|number| number.checked_shl(shift)).ok_or_else(bad)
}

#[cfg(test)]
mod tests;
