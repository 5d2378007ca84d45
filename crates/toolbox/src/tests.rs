use super::*;

#[test]
fn applets_are_sorted_and_found() {
    assert!(APPLETS.is_sorted());
    assert!(APPLETS.iter().all(|name| find(name).is_some()));
}

#[test]
fn durations_and_sizes() {
    assert_eq!(duration("1.5s").unwrap().as_millis(), 1500);
    assert_eq!(duration("200ms").unwrap().as_millis(), 200);
    assert_eq!(duration("2m").unwrap().as_secs(), 120);
    assert!(duration("x").is_err());
    assert_eq!(size("64k").unwrap(), 65536);
    assert_eq!(size("1Gi").unwrap(), 1 << 30);
    assert!(size("1q").is_err());
}

#[test]
fn flags_may_be_joined_and_carry_values() {
    let args: Vec<String> = ["-la", "-n5", "x", "--", "-y"].map(str::to_owned).to_vec();
    let (found, operands) = flags(&args, "la", "n", "").unwrap();
    assert!(has(&found, 'l') && has(&found, 'a'));
    assert_eq!(value::<u8>(&found, 'n').unwrap(), Some(5));
    assert_eq!(operands, ["x", "-y"]);
    assert!(flags(&args, "l", "n", "").is_err());
}

#[test]
fn conditions() {
    let check = |text: &str| test::main(&text.split(' ').map(str::to_owned).collect::<Vec<_>>()).ok();
    assert_eq!(check("a = a"), Some(0));
    assert_eq!(check("! a = a"), Some(1));
    assert_eq!(check("3 -lt 10 -a -d /"), Some(0));
    assert_eq!(check("-f / -o -n x"), Some(0));
    assert_eq!(check("-z x"), Some(1));
    assert_eq!(check("x -eq 1"), None);
}

#[test]
fn patterns() {
    for (pattern, text, expected) in [
        ("abc", "xabcx", true),
        ("^abc", "xabc", false),
        ("a.c$", "xabc", true),
        ("a.*d", "abcd", true),
        ("ab*c", "ac", true),
        ("a\\.c", "abc", false),
    ] {
        assert_eq!(text::grep_matches(pattern, text), expected, "{pattern} {text}");
    }
}

#[test]
fn dates() {
    assert_eq!(process::format_time(0, 0, "%F %T %a"), "1970-01-01 00:00:00 Thu");
    assert_eq!(process::format_time(951_782_400, 5, "%Y-%m-%d %N"), "2000-02-29 000000005");
    assert_eq!(process::format_time(1_798_761_599, 0, "%e %b %Y %H:%M:%S"), "31 Dec 2026 23:59:59");
}

#[test]
fn search_lists() {
    let config = resolve::Config::parse("nameserver 10.96.0.10\nsearch a.svc b.\noptions x ndots:2\n");
    assert_eq!(config.servers, ["10.96.0.10:53".parse().unwrap()]);
    assert_eq!(config.candidates("web"), ["web.a.svc", "web.b", "web"]);
    assert_eq!(config.candidates("web.x.y"), ["web.x.y", "web.x.y.a.svc", "web.x.y.b"]);
    assert_eq!(config.candidates("web."), ["web."]);
}

#[test]
fn archives_come_out_as_they_went_in() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    std::fs::create_dir_all(folder.path().join("in/sub")).unwrap();
    std::fs::write(folder.path().join("in/sub/file"), "text").unwrap();
    std::os::unix::fs::symlink("sub/file", folder.path().join("in/link")).unwrap();
    let words = |text: String| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    tar::main(&words(format!("cf {} -C {} .", at("a.tar"), at("in")))).unwrap();
    std::fs::create_dir(folder.path().join("out")).unwrap();
    tar::main(&words(format!("-xmf {} -C {}", at("a.tar"), at("out")))).unwrap();
    assert_eq!(std::fs::read_to_string(folder.path().join("out/link")).unwrap(), "text");
}
