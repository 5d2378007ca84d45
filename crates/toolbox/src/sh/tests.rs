//! The shell as a program: the test binary is not single-threaded, so a helper process runs the script.

use std::process::Command;

/// Standard output and exit code of a script. The child is this test binary again, told by a variable to be the shell.
fn check(script: &str) -> (String, i32) {
    let program = std::env::current_exe().unwrap();
    let output = Command::new(program)
        .args(["--exact", "sh::tests::shell_process", "--nocapture", "--test-threads=1", "-q"])
        .env("TOOLBOX_TEST_SCRIPT", script)
        .env("PATH", "/usr/bin:/bin")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let text = text.split_once("<<<").map_or("", |(_, rest)| rest);
    (text.to_owned(), output.status.code().unwrap_or(-1))
}

/// Not a test by itself: the other half of [`check`]. Without a script it does nothing.
#[test]
fn shell_process() {
    let Ok(script) = std::env::var("TOOLBOX_TEST_SCRIPT") else { return };
    print!("<<<");
    std::io::Write::flush(&mut std::io::stdout()).unwrap();
    // libtest runs a single test in the main thread only with one test thread; a fork from there is safe enough for what we do.
    let code = super::main(&["-c".to_owned(), script]).unwrap_or_else(|failure| {
        eprintln!("{}", failure.text);
        failure.code
    });
    std::io::Write::flush(&mut std::io::stdout()).unwrap();
    // SAFETY: ends the helper process without libtest's own report.
    unsafe { libc::_exit(i32::from(code)) }
}

fn says(script: &str, expected: &str) {
    assert_eq!(check(script), (expected.to_owned(), 0), "{script}");
}

#[test]
fn words_quotes_and_variables() {
    says("echo a  'b  c' \"d $((1 + 2 * 3))\"", "a b  c d 7\n");
    says("x=1; y=\"$x $x\"; echo $y \"${y}z\" ${z:-none} ${#y} '$x'", "1 1 1 1z none 3 $x\n");
    says("f=a/b.tar.gz; echo ${f%%.*} ${f%.*} ${f#*/} ${f##*.}", "a/b a/b.tar b.tar.gz gz\n");
    says("set -- 'a b' c; for x in \"$@\"; do echo \"[$x]\"; done; echo $# $1", "[a b]\n[c]\n2 a b\n");
    says("echo \"$(echo one; echo two)\" `echo three`", "one\ntwo three\n");
    says("x='a  b'; echo $x; echo \"$x\"; echo \"\" | wc -c", "a b\na  b\n1\n");
    says("echo a#b # comment", "a#b\n");
}

#[test]
fn control_flow() {
    says("if false; then echo a; elif true; then echo b; else echo c; fi", "b\n");
    says("i=0; while [ $i -lt 3 ]; do i=$((i+1)); if [ $i = 2 ]; then continue; fi; echo $i; done", "1\n3\n");
    says("for i in 1 2 3; do for j in a b; do [ $i = 2 ] && break 2; echo $i$j; done; done", "1a\n1b\n");
    says("case foo.txt in *.md) echo md;; *.txt|x) echo txt;; *) echo other;; esac", "txt\n");
    says("f() { echo \"$1-$#\"; return 3; }; f x y; echo $?", "x-2\n3\n");
    says("true && echo yes || echo no; ! true || echo not", "yes\nnot\n");
    says("until true; do echo never; done; { echo a; echo b; } | wc -l", "2\n");
}

#[test]
fn status_and_exit() {
    assert_eq!(check("false; echo $?; exit 7; echo never"), ("1\n".into(), 7));
    assert_eq!(check("set -e; false || echo fine; false; echo never"), ("fine\n".into(), 1));
    assert_eq!(check("nosuchcommand").1, 127);
    assert_eq!(check("if then").1, 2);
    assert_eq!(check("(exit 4)").1, 4);
    assert_eq!(check("x=$(exit 5)").1, 5);
    assert_eq!(check("trap 'echo bye' EXIT; exit 3"), ("bye\n".into(), 3));
    assert_eq!(check("sh -c 'kill -9 $$'; echo $?").0, "137\n");
}

#[test]
fn redirections_and_pipes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f");
    let path = path.to_str().unwrap();
    says(
        &format!("echo a > {path}; echo b >> {path}; cat < {path}; cat {path} | tr a-z A-Z"),
        "a\nb\nA\nB\n",
    );
    says("echo err 2>/dev/null >&2; (echo out; echo err >&2) 2>&1 | sort", "err\nout\n");
    says("x=1\ncat <<END\nx is $x\nEND\ncat <<'END'\n$x\nEND", "x is 1\n$x\n");
    says("printf 'a 1\\nb 2\\n' | while read -r name number; do echo $number$name; done", "1a\n2b\n");
    says(&format!("cd {}; touch p1 p2 q; echo p* z*", folder.path().display()), "p1 p2 z*\n");
}

#[test]
fn background_and_traps() {
    says("sleep 0.05 & wait; echo done", "done\n");
    says("(exit 6) & wait $!; echo $?", "6\n");
    says("trap 'echo got; kill $p; exit 0' TERM; sleep 30 & p=$!; (sleep 0.1; kill $$) & wait", "got\n");
    says("A=1 env | grep ^A=; export B=2; env | grep ^B=; echo ${A:-unset}", "A=1\nB=2\nunset\n");
}
