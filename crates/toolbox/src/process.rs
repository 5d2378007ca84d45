//! Applets about processes, users and the system.

use crate::{Failure, Outcome, duration, flags, has};
use nix::sys::signal::{self, Signal};
use nix::unistd::{Pid, getegid, geteuid, getgid, getgroups, getuid};
use std::fs;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) fn yes(_: &[String]) -> Outcome {
    Ok(0)
}

pub(crate) fn no(_: &[String]) -> Outcome {
    Ok(1)
}

pub(crate) fn sleep(args: &[String]) -> Outcome {
    if args.is_empty() {
        return Err(Failure::usage("sleep DURATION..."));
    }
    for arg in args {
        std::thread::sleep(duration(arg)?);
    }
    Ok(0)
}

pub(crate) fn pwd(_: &[String]) -> Outcome {
    println!("{}", std::env::current_dir()?.display());
    Ok(0)
}

pub(crate) fn env(args: &[String]) -> Outcome {
    let mut rest = args;
    let mut set = Vec::new();
    while let Some((name, value)) = rest.first().and_then(|arg| arg.split_once('=')) {
        set.push((name, value));
        rest = &rest[1..];
    }
    if let Some(program) = rest.first() {
        let mut command = std::process::Command::new(program);
        command.args(&rest[1..]).envs(set.iter().copied());
        // `printenv NAME` and `env NAME=x command` share this applet.
        if set.is_empty()
            && rest.len() == 1
            && let Some(value) = std::env::var_os(program)
        {
            println!("{}", value.to_string_lossy());
            return Ok(0);
        }
        let error = command.exec();
        return Err(Failure { text: format!("{program}: {error}"), code: 127 });
    }
    let mut out = io::stdout().lock();
    for (name, value) in std::env::vars_os() {
        writeln!(out, "{}={}", name.to_string_lossy(), value.to_string_lossy())?;
    }
    for (name, value) in set {
        writeln!(out, "{name}={value}")?;
    }
    Ok(0)
}

pub(crate) fn hostname(args: &[String]) -> Outcome {
    if args.iter().any(|arg| arg == "-i") {
        let name = name_of_host()?;
        let addresses = crate::resolve::addresses(&name)?;
        let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        println!("{}", texts.join(" "));
    } else {
        println!("{}", name_of_host()?);
    }
    Ok(0)
}

pub(crate) fn name_of_host() -> Result<String, Failure> {
    Ok(nix::unistd::gethostname()?.to_string_lossy().into_owned())
}

pub(crate) fn whoami(_: &[String]) -> Outcome {
    println!("{}", user_name(geteuid().as_raw()).unwrap_or_else(|| geteuid().to_string()));
    Ok(0)
}

fn user_name(uid: u32) -> Option<String> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let mut parts = line.split(':');
        let name = parts.next()?;
        (parts.nth(1)? == uid.to_string()).then(|| name.to_owned())
    })
}

pub(crate) fn id(args: &[String]) -> Outcome {
    let (found, _) = flags(args, "ugGn", "", "id [-u|-g|-G]")?;
    let groups = getgroups()?;
    let list = |separator: &str| {
        let mut all: Vec<String> = vec![getegid().to_string()];
        all.extend(groups.iter().filter(|group| **group != getegid()).map(ToString::to_string));
        all.join(separator)
    };
    if has(&found, 'u') {
        println!("{}", geteuid());
    } else if has(&found, 'g') {
        println!("{}", getegid());
    } else if has(&found, 'G') {
        println!("{}", list(" "));
    } else {
        println!("uid={} gid={} groups={}", getuid(), getgid(), list(","));
    }
    Ok(0)
}

pub(crate) fn uname(args: &[String]) -> Outcome {
    let (found, _) = flags(args, "asnrmv", "", "uname [-asnrm]")?;
    let info = nix::sys::utsname::uname()?;
    let all = has(&found, 'a');
    let mut parts = Vec::new();
    for (letter, text) in [
        ('s', info.sysname()),
        ('n', info.nodename()),
        ('r', info.release()),
        ('v', info.version()),
        ('m', info.machine()),
    ] {
        if all || has(&found, letter) || (found.is_empty() && letter == 's') {
            parts.push(text.to_string_lossy().into_owned());
        }
    }
    println!("{}", parts.join(" "));
    Ok(0)
}

pub(crate) fn ps(_: &[String]) -> Outcome {
    let mut rows: Vec<(u32, String, String)> = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(status) = fs::read_to_string(entry.path().join("status")) else { continue };
        let field = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(str::trim)
                .unwrap_or_default()
                .to_owned()
        };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut text = String::from_utf8_lossy(&line).trim_end_matches('\0').replace('\0', " ");
        if text.is_empty() {
            text = format!("[{}]", field("Name:"));
        }
        let uid = field("Uid:").split_whitespace().next().unwrap_or_default().to_owned();
        rows.push((pid, uid, format!("{} {text}", field("State:").chars().next().unwrap_or('?'))));
    }
    rows.sort();
    let mut out = io::stdout().lock();
    writeln!(out, "{:>7} {:>6} S COMMAND", "PID", "UID")?;
    for (pid, uid, text) in rows {
        writeln!(out, "{pid:>7} {uid:>6} {text}")?;
    }
    Ok(0)
}

/// A signal by name (with or without `SIG`) or number; 0 only checks.
pub(crate) fn signal_named(text: &str) -> Option<Option<Signal>> {
    if let Ok(number) = text.parse::<i32>() {
        return if number == 0 { Some(None) } else { Signal::try_from(number).ok().map(Some) };
    }
    let upper = text.to_ascii_uppercase();
    let full = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    full.parse().ok().map(Some)
}

pub(crate) fn kill(args: &[String]) -> Outcome {
    const USAGE: &str = "kill [-SIGNAL | -s SIGNAL] PID...";
    let mut wanted = Some(Signal::SIGTERM);
    let mut rest = args;
    if let Some(text) = rest.first().and_then(|arg| arg.strip_prefix('-')) {
        let text = if text == "s" {
            rest = &rest[1..];
            rest.first().map(String::as_str).unwrap_or_default()
        } else {
            text
        };
        wanted = signal_named(text).ok_or_else(|| Failure::usage(USAGE))?;
        rest = rest.get(1..).unwrap_or_default();
    }
    if rest.is_empty() {
        return Err(Failure::usage(USAGE));
    }
    for arg in rest {
        let pid: i32 = arg.parse().map_err(|_| Failure::usage(USAGE))?;
        signal::kill(Pid::from_raw(pid), wanted).map_err(|errno| Failure::about(arg, errno.desc()))?;
    }
    Ok(0)
}

pub(crate) fn date(args: &[String]) -> Outcome {
    let format = args.iter().find_map(|arg| arg.strip_prefix('+')).unwrap_or("%a %b %e %H:%M:%S UTC %Y");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    println!("{}", format_time(now.as_secs() as i64, now.subsec_nanos(), format));
    Ok(0)
}

/// Formats a time in UTC with the letters of strftime(3) that scripts use.
pub(crate) fn format_time(seconds: i64, nanos: u32, format: &str) -> String {
    let days = seconds.div_euclid(86400);
    let clock = seconds.rem_euclid(86400);
    let (year, month, day) = civil(days);
    let weekday = (days + 4).rem_euclid(7) as usize;
    let weekdays = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (hour, minute, second) = (clock / 3600, clock / 60 % 60, clock % 60);
    let mut text = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            text.push(letter);
            continue;
        }
        match letters.next() {
            Some('Y') => text += &year.to_string(),
            Some('m') => text += &format!("{month:02}"),
            Some('d') => text += &format!("{day:02}"),
            Some('e') => text += &format!("{day:2}"),
            Some('H') => text += &format!("{hour:02}"),
            Some('M') => text += &format!("{minute:02}"),
            Some('S') => text += &format!("{second:02}"),
            Some('N') => text += &format!("{nanos:09}"),
            Some('s') => text += &seconds.to_string(),
            Some('F') => text += &format!("{year}-{month:02}-{day:02}"),
            Some('T') => text += &format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => text += "UTC",
            Some('z') => text += "+0000",
            Some('a') => text += weekdays[weekday],
            Some('b') => text += months[month as usize - 1],
            Some('%') => text.push('%'),
            Some(other) => text.extend(['%', other]),
            None => text.push('%'),
        }
    }
    text
}

/// Year, month and day of a count of days since 1970 (proleptic Gregorian).
fn civil(days: i64) -> (i64, u32, u32) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = (of_year - (153 * shifted_month + 2) / 5 + 1) as u32;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 } as u32;
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}
