//! Applets that read, cut and write text.

use crate::{Failure, Outcome, flags, has, value};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::time::Duration;

fn open(name: &str) -> Result<Box<dyn Read>, Failure> {
    if name == "-" {
        return Ok(Box::new(io::stdin()));
    }
    File::open(name).map(|file| Box::new(file) as Box<dyn Read>).map_err(|error| Failure::about(name, error))
}

fn or_stdin(operands: Vec<&str>) -> Vec<&str> {
    if operands.is_empty() { vec!["-"] } else { operands }
}

fn lines(name: &str) -> Result<impl Iterator<Item = io::Result<Vec<u8>>>, Failure> {
    Ok(BufReader::new(open(name)?).split(b'\n'))
}

pub(crate) fn cat(args: &[String]) -> Outcome {
    let (_, operands) = flags(args, "u", "", "cat [FILE]...")?;
    let mut out = io::stdout().lock();
    let mut code = 0;
    for name in or_stdin(operands) {
        // A missing file does not keep the others from being shown.
        match open(name).and_then(|mut input| Ok(io::copy(&mut input, &mut out).map(drop)?)) {
            Ok(()) => {}
            Err(failure) if failure.text.is_empty() => return Err(failure),
            Err(failure) => {
                eprintln!("cat: {}", failure.text);
                code = 1;
            }
        }
    }
    Ok(code)
}

pub(crate) fn echo(args: &[String]) -> Outcome {
    let mut rest = args;
    let (mut newline, mut escapes) = (true, false);
    while let Some(flag) =
        rest.first().filter(|arg| matches!(arg.as_str(), "-n" | "-e" | "-ne" | "-en" | "-E"))
    {
        newline &= !flag.contains('n');
        escapes |= flag.contains('e');
        rest = &rest[1..];
    }
    let text = rest.join(" ");
    let mut out = io::stdout().lock();
    if escapes {
        out.write_all(&unescape(&text))?;
    } else {
        out.write_all(text.as_bytes())?;
    }
    if newline {
        out.write_all(b"\n")?;
    }
    Ok(0)
}

fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes().peekable();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        match rest.next() {
            Some(b'n') => bytes.push(b'\n'),
            Some(b't') => bytes.push(b'\t'),
            Some(b'r') => bytes.push(b'\r'),
            Some(b'a') => bytes.push(7),
            Some(b'e') => bytes.push(27),
            Some(b'\\') => bytes.push(b'\\'),
            Some(b'0') => {
                let mut code = 0u32;
                for _ in 0..3 {
                    match rest.peek() {
                        Some(digit @ b'0'..=b'7') => code = code * 8 + u32::from(digit - b'0'),
                        _ => break,
                    }
                    rest.next();
                }
                bytes.push(code as u8);
            }
            Some(other) => bytes.extend([b'\\', other]),
            None => bytes.push(b'\\'),
        }
    }
    bytes
}

pub(crate) fn printf(args: &[String]) -> Outcome {
    let Some(format) = args.first() else { return Err(Failure::usage("printf FORMAT [ARGUMENT]...")) };
    let format = unescape(format);
    let mut rest = args[1..].iter();
    let mut out = io::stdout().lock();
    loop {
        let before = rest.len();
        let mut bytes = format.iter().copied();
        while let Some(byte) = bytes.next() {
            if byte != b'%' {
                out.write_all(&[byte])?;
                continue;
            }
            let mut width = String::new();
            let letter = loop {
                match bytes.next() {
                    Some(digit @ (b'0'..=b'9' | b'-' | b'.')) => width.push(digit as char),
                    other => break other,
                }
            };
            let pad = width.trim_start_matches('-').trim_start_matches('0').parse::<usize>().unwrap_or(0);
            let zero = width.starts_with('0');
            let text = match letter {
                Some(b'%') => "%".to_owned(),
                Some(b's' | b'c') => rest.next().cloned().unwrap_or_default(),
                Some(b'b') => {
                    let raw = rest.next().cloned().unwrap_or_default();
                    String::from_utf8_lossy(&unescape(&raw)).into_owned()
                }
                Some(b'd' | b'i' | b'u') => {
                    rest.next().and_then(|arg| arg.parse::<i64>().ok()).unwrap_or(0).to_string()
                }
                Some(b'x') => {
                    format!("{:x}", rest.next().and_then(|arg| arg.parse::<i64>().ok()).unwrap_or(0))
                }
                _ => return Err(Failure::new("unknown conversion in the format")),
            };
            if width.starts_with('-') {
                write!(out, "{text:<pad$}")?;
            } else if zero {
                write!(out, "{text:0>pad$}")?;
            } else {
                write!(out, "{text:>pad$}")?;
            }
        }
        if rest.len() == 0 || rest.len() == before {
            return Ok(0);
        }
    }
}

/// `-n N`, and `-N` as scripts still write it.
fn count_args(args: &[String]) -> Vec<String> {
    let old = |arg: &String| {
        arg.strip_prefix('-').is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
    };
    args.iter().map(|arg| if old(arg) { format!("-n{}", &arg[1..]) } else { arg.clone() }).collect()
}

pub(crate) fn head(args: &[String]) -> Outcome {
    let args = count_args(args);
    let (found, operands) = flags(&args, "", "nc", "head [-n LINES | -c BYTES] [FILE]...")?;
    let count: usize = value(&found, 'n')?.unwrap_or(10);
    let bytes: Option<u64> = value(&found, 'c')?;
    let mut out = io::stdout().lock();
    for name in or_stdin(operands) {
        if let Some(bytes) = bytes {
            io::copy(&mut open(name)?.take(bytes), &mut out)?;
            continue;
        }
        for line in lines(name)?.take(count) {
            out.write_all(&line?)?;
            out.write_all(b"\n")?;
        }
    }
    Ok(0)
}

pub(crate) fn tail(args: &[String]) -> Outcome {
    let args = count_args(args);
    let (found, operands) = flags(&args, "fF", "nc", "tail [-f] [-n LINES] [FILE]")?;
    let count: usize = match found.iter().find(|(flag, _)| *flag == 'n') {
        // `+N` means from line N on.
        Some((_, text)) if text.starts_with('+') => return tail_from(text, &operands),
        _ => value(&found, 'n')?.unwrap_or(10),
    };
    let name = operands.first().copied().unwrap_or("-");
    let mut input = open(name)?;
    let mut bytes = Vec::new();
    input.read_to_end(&mut bytes)?;
    let body = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let start = if count == 0 {
        bytes.len()
    } else {
        body.iter()
            .enumerate()
            .rev()
            .filter(|(_, byte)| **byte == b'\n')
            .nth(count - 1)
            .map_or(0, |(at, _)| at + 1)
    };
    let mut out = io::stdout().lock();
    out.write_all(&bytes[start..])?;
    out.flush()?;
    if !(has(&found, 'f') || has(&found, 'F')) || name == "-" {
        return Ok(0);
    }
    let mut position = bytes.len() as u64;
    loop {
        std::thread::sleep(Duration::from_millis(200));
        // By name each time, so that a rotated file is followed.
        let Ok(mut file) = File::open(name) else { continue };
        let length = file.metadata()?.len();
        if length < position {
            position = 0;
        }
        if length > position {
            file.seek(SeekFrom::Start(position))?;
            position += io::copy(&mut file, &mut out)?;
            out.flush()?;
        }
    }
}

fn tail_from(text: &str, operands: &[&str]) -> Outcome {
    let from: usize = text[1..].parse().map_err(|_| Failure::usage("tail -n +LINE [FILE]"))?;
    let mut out = io::stdout().lock();
    for line in lines(operands.first().copied().unwrap_or("-"))?.skip(from.saturating_sub(1)) {
        out.write_all(&line?)?;
        out.write_all(b"\n")?;
    }
    Ok(0)
}

/// Whether `text` matches a pattern of literal characters, `.`, `*` after one character, `^` and `$`.
fn matches(pattern: &[char], text: &[char]) -> bool {
    fn here(pattern: &[char], text: &[char]) -> bool {
        match pattern {
            [] => true,
            ['$'] => text.is_empty(),
            ['\\', literal, rest @ ..] => text.first() == Some(literal) && here(rest, &text[1..]),
            [any, '*', rest @ ..] => {
                let fits = text.iter().take_while(|c| *any == '.' || *c == any).count();
                (0..=fits).rev().any(|taken| here(rest, &text[taken..]))
            }
            [one, rest @ ..] => {
                text.first().is_some_and(|c| *one == '.' || c == one) && here(rest, &text[1..])
            }
        }
    }
    match pattern {
        ['^', rest @ ..] => here(rest, text),
        _ => (0..=text.len()).any(|start| here(pattern, &text[start..])),
    }
}

pub(crate) fn grep(args: &[String]) -> Outcome {
    const USAGE: &str = "grep [-FEivqcnoh] PATTERN [FILE]...";
    let (found, mut operands) = flags(args, "FEivqcnohrsw", "e", USAGE)?;
    let pattern = match found.iter().find(|(flag, _)| *flag == 'e') {
        Some((_, pattern)) => pattern,
        None if operands.is_empty() => return Err(Failure::usage(USAGE)),
        None => operands.remove(0),
    };
    let fold = |text: String| if has(&found, 'i') { text.to_lowercase() } else { text };
    let pattern = fold(pattern.to_owned());
    // Alternatives of -E are tried one by one.
    let patterns: Vec<String> =
        if has(&found, 'E') { pattern.split('|').map(str::to_owned).collect() } else { vec![pattern] };
    let chars: Vec<Vec<char>> = patterns.iter().map(|pattern| pattern.chars().collect()).collect();
    let names = or_stdin(operands);
    let mut out = io::stdout().lock();
    let (mut any, several) = (false, names.len() > 1 && !has(&found, 'h'));
    for name in &names {
        let mut count = 0;
        for (number, line) in lines(name)?.enumerate() {
            let line = line?;
            let text = fold(String::from_utf8_lossy(&line).into_owned());
            let hit = if has(&found, 'F') {
                patterns.iter().any(|pattern| text.contains(pattern))
            } else {
                let text: Vec<char> = text.chars().collect();
                chars.iter().any(|pattern| matches(pattern, &text))
            };
            if hit == has(&found, 'v') {
                continue;
            }
            any = true;
            count += 1;
            if has(&found, 'q') {
                return Ok(0);
            }
            if has(&found, 'c') {
                continue;
            }
            if several {
                write!(out, "{name}:")?;
            }
            if has(&found, 'n') {
                write!(out, "{}:", number + 1)?;
            }
            out.write_all(&line)?;
            out.write_all(b"\n")?;
        }
        if has(&found, 'c') {
            writeln!(out, "{count}")?;
        }
    }
    Ok(u8::from(!any))
}

pub(crate) fn wc(args: &[String]) -> Outcome {
    let (found, operands) = flags(args, "lwc", "", "wc [-lwc] [FILE]...")?;
    let mut out = io::stdout().lock();
    for name in or_stdin(operands) {
        let mut bytes = Vec::new();
        open(name)?.read_to_end(&mut bytes)?;
        let newlines = bytes.iter().filter(|byte| **byte == b'\n').count();
        let words = bytes.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty()).count();
        let mut parts: Vec<String> = [('l', newlines), ('w', words), ('c', bytes.len())]
            .iter()
            .filter(|(flag, _)| found.is_empty() || has(&found, *flag))
            .map(|(_, count)| count.to_string())
            .collect();
        if name != "-" {
            parts.push(name.to_owned());
        }
        writeln!(out, "{}", parts.join(" "))?;
    }
    Ok(0)
}

pub(crate) fn seq(args: &[String]) -> Outcome {
    let bad = || Failure::usage("seq [FIRST [STEP]] LAST");
    let numbers: Vec<i64> =
        args.iter().map(|arg| arg.parse()).collect::<Result<_, _>>().map_err(|_| bad())?;
    let (first, step, last) = match numbers[..] {
        [last] => (1, 1, last),
        [first, last] => (first, 1, last),
        [first, step, last] if step != 0 => (first, step, last),
        _ => return Err(bad()),
    };
    let mut out = io::stdout().lock();
    let mut number = first;
    while (step > 0 && number <= last) || (step < 0 && number >= last) {
        writeln!(out, "{number}")?;
        number += step;
    }
    Ok(0)
}

pub(crate) fn sort(args: &[String]) -> Outcome {
    let (found, operands) = flags(args, "nru", "", "sort [-nru] [FILE]...")?;
    let mut all = Vec::new();
    for name in or_stdin(operands) {
        for line in lines(name)? {
            all.push(line?);
        }
    }
    if has(&found, 'n') {
        all.sort_by_key(|line| {
            let text = String::from_utf8_lossy(line).trim().to_owned();
            let digits = text.find(|c: char| !c.is_ascii_digit() && c != '-').unwrap_or(text.len());
            text[..digits].parse::<i64>().unwrap_or(0)
        });
    } else {
        all.sort();
    }
    if has(&found, 'u') {
        all.dedup();
    }
    if has(&found, 'r') {
        all.reverse();
    }
    let mut out = io::stdout().lock();
    for line in all {
        out.write_all(&line)?;
        out.write_all(b"\n")?;
    }
    Ok(0)
}

pub(crate) fn uniq(args: &[String]) -> Outcome {
    let (found, operands) = flags(args, "c", "", "uniq [-c] [FILE]")?;
    let mut out = io::stdout().lock();
    let mut last: Option<(Vec<u8>, usize)> = None;
    let mut show = |entry: Option<(Vec<u8>, usize)>| -> io::Result<()> {
        let Some((line, count)) = entry else { return Ok(()) };
        if has(&found, 'c') {
            write!(out, "{count:>7} ")?;
        }
        out.write_all(&line)?;
        out.write_all(b"\n")
    };
    for line in lines(operands.first().copied().unwrap_or("-"))? {
        let line = line?;
        match &mut last {
            Some((previous, count)) if *previous == line => *count += 1,
            _ => show(last.replace((line, 1)))?,
        }
    }
    show(last)?;
    Ok(0)
}

pub(crate) fn cut(args: &[String]) -> Outcome {
    const USAGE: &str = "cut -d DELIMITER -f N[,N...] [FILE]...";
    let (found, operands) = flags(args, "s", "df", USAGE)?;
    let delimiter: char = value(&found, 'd')?.unwrap_or('\t');
    let wanted: String = value(&found, 'f')?.ok_or_else(|| Failure::usage(USAGE))?;
    let mut ranges = Vec::new();
    for part in wanted.split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str, default| {
            if text.is_empty() { Ok(default) } else { text.parse().map_err(|_| Failure::usage(USAGE)) }
        };
        ranges.push((number(from, 1)?, number(to, usize::MAX)?));
    }
    let mut out = io::stdout().lock();
    for name in or_stdin(operands) {
        for line in lines(name)? {
            let line = String::from_utf8_lossy(&line?).into_owned();
            let kept: Vec<&str> = line
                .split(delimiter)
                .enumerate()
                .filter(|(at, _)| ranges.iter().any(|(from, to)| (*from..=*to).contains(&(at + 1))))
                .map(|(_, field)| field)
                .collect();
            writeln!(out, "{}", kept.join(&delimiter.to_string()))?;
        }
    }
    Ok(0)
}

/// Expands `a-z` and the escapes.
fn characters(text: &str) -> Vec<char> {
    let plain: Vec<char> = String::from_utf8_lossy(&unescape(text)).chars().collect();
    let mut all = Vec::new();
    let mut at = 0;
    while at < plain.len() {
        if at + 2 < plain.len() && plain[at + 1] == '-' {
            all.extend(plain[at]..=plain[at + 2]);
            at += 3;
        } else {
            all.push(plain[at]);
            at += 1;
        }
    }
    all
}

pub(crate) fn tr(args: &[String]) -> Outcome {
    const USAGE: &str = "tr [-d] FROM [TO]";
    let (found, operands) = flags(args, "d", "", USAGE)?;
    let from = characters(operands.first().ok_or_else(|| Failure::usage(USAGE))?);
    let to = characters(operands.get(1).copied().unwrap_or_default());
    if to.is_empty() && !has(&found, 'd') {
        return Err(Failure::usage(USAGE));
    }
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    let changed: String = text
        .chars()
        .filter_map(|c| match from.iter().position(|known| *known == c) {
            Some(_) if has(&found, 'd') => None,
            Some(at) => to.get(at).or(to.last()).copied(),
            None => Some(c),
        })
        .collect();
    io::stdout().write_all(changed.as_bytes())?;
    Ok(0)
}

pub(crate) fn tee(args: &[String]) -> Outcome {
    let (found, operands) = flags(args, "a", "", "tee [-a] [FILE]...")?;
    let mut files = Vec::new();
    for name in operands {
        let mut options = File::options();
        options.create(true).write(true).append(has(&found, 'a')).truncate(!has(&found, 'a'));
        files.push(options.open(name).map_err(|error| Failure::about(name, error))?);
    }
    let mut buffer = [0; 8192];
    let mut input = io::stdin();
    loop {
        let count = input.read(&mut buffer)?;
        if count == 0 {
            return Ok(0);
        }
        let mut out = io::stdout();
        out.write_all(&buffer[..count])?;
        out.flush()?;
        for file in &mut files {
            file.write_all(&buffer[..count])?;
        }
    }
}

pub(crate) fn basename(args: &[String]) -> Outcome {
    let Some(path) = args.first() else { return Err(Failure::usage("basename PATH [SUFFIX]")) };
    let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let suffix = args.get(1).map(String::as_str).unwrap_or_default();
    println!("{}", name.strip_suffix(suffix).filter(|name| !name.is_empty()).unwrap_or(name));
    Ok(0)
}

pub(crate) fn dirname(args: &[String]) -> Outcome {
    let Some(path) = args.first() else { return Err(Failure::usage("dirname PATH")) };
    let trimmed = path.trim_end_matches('/');
    println!(
        "{}",
        match trimmed.rsplit_once('/') {
            Some(("", _)) => "/",
            Some((parent, _)) => parent,
            None if trimmed.is_empty() && !path.is_empty() => "/",
            None => ".",
        }
    );
    Ok(0)
}

pub(crate) fn base64(args: &[String]) -> Outcome {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (found, operands) = flags(args, "d", "w", "base64 [-d] [FILE]")?;
    let mut input = Vec::new();
    open(operands.first().copied().unwrap_or("-"))?.read_to_end(&mut input)?;
    let mut output = Vec::new();
    if has(&found, 'd') {
        let mut bits = 0u32;
        let mut count = 0;
        for byte in input.iter().filter(|byte| !byte.is_ascii_whitespace() && **byte != b'=') {
            let digit = LETTERS
                .iter()
                .position(|letter| letter == byte)
                .ok_or_else(|| Failure::new("invalid input"))?;
            bits = bits << 6 | digit as u32;
            count += 6;
            if count >= 8 {
                count -= 8;
                output.push((bits >> count) as u8);
            }
        }
    } else {
        for chunk in input.chunks(3) {
            let bits =
                chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
            for at in 0..4 {
                let digit = (bits >> (18 - 6 * at) & 63) as usize;
                output.push(if at <= chunk.len() { LETTERS[digit] } else { b'=' });
            }
        }
        output.push(b'\n');
    }
    io::stdout().write_all(&output)?;
    Ok(0)
}

/// For tests.
#[cfg(test)]
pub(crate) fn grep_matches(pattern: &str, text: &str) -> bool {
    matches(&pattern.chars().collect::<Vec<_>>(), &text.chars().collect::<Vec<_>>())
}
