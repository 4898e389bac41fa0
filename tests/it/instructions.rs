//! The gate of scripts/instructions: which tables it lets through. What is measured is that script's business.

use std::path::Path;
use std::process::Command;

use super::support::scratch::Scratch;

const HERE: &str = "rustc 1.95.0, x86_64 with AVX2, glibc 2.36";
const ELSEWHERE: &str = "rustc 1.96.0, x86_64 with AVX2, glibc 2.36";

/// Whether it lets the measured cases through, and what it says. Each case: instructions, allocations, bytes held.
fn compare(recorded: &[&str], made_with: &str, measured: &[&str]) -> (bool, String) {
    let folder = Scratch::new();
    folder.write("recorded", &format!("# {HERE}\n# case\n{}\n", recorded.join("\n")));
    folder.write("measured", &format!("# {made_with}\n# case\n{}\n", measured.join("\n")));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/instructions");
    let mut command = Command::new(script);
    command.arg("--compare").args([folder.path("recorded"), folder.path("measured")]);
    let output = command.output().expect("the script runs");
    (output.status.success(), String::from_utf8(output.stdout).expect("text"))
}

#[test]
fn what_is_as_recorded_passes() {
    let (passed, said) = compare(&["a 1000 2.00 0", "b 500 0.00 0"], HERE, &["a 1049 2.00 0", "b 500 0.04 0"]);
    assert!(passed && said.ends_with("2 passed, 0 failed\n"), "{said}");
    assert!(!said.contains("less"), "{said}");
}

#[test]
fn more_instructions_fail() {
    let (passed, said) = compare(&["a 1000 2.00 0", "b 500 0.00 0"], HERE, &["a 1051 2.00 0", "b 500 0.00 0"]);
    assert!(!passed && said.contains("MORE INSTRUCTIONS"), "{said}");
    assert!(said.ends_with("1 passed, 1 failed\n"), "{said}");
}

#[test]
fn more_allocations_fail_with_any_compiler() {
    for made_with in [HERE, ELSEWHERE] {
        let (passed, said) = compare(&["a 1000 2.00 0"], made_with, &["a 900 3.00 0"]);
        assert!(!passed && said.contains("MORE ALLOCATIONS"), "{said}");
    }
}

#[test]
fn more_bytes_fail_with_any_compiler() {
    for made_with in [HERE, ELSEWHERE] {
        let (passed, said) = compare(&["idle-a 1000 2.00 2000"], made_with, &["idle-a 1000 2.00 2101"]);
        assert!(!passed && said.contains("MORE BYTES"), "{said}");
    }
}

#[test]
fn another_compiler_may_take_a_fifth_more() {
    let (passed, said) = compare(&["a 1000 2.00 0"], ELSEWHERE, &["a 1199 2.00 0"]);
    assert!(passed && said.contains(HERE) && said.contains(ELSEWHERE), "{said}");
    let (passed, said) = compare(&["a 1000 2.00 0"], ELSEWHERE, &["a 1201 2.00 0"]);
    assert!(!passed, "{said}");
}

#[test]
fn less_passes_and_asks_to_be_recorded() {
    for less in ["a 900 2.00 2000", "a 1000 1.00 2000", "a 1000 2.00 1800"] {
        let (passed, said) = compare(&["a 1000 2.00 2000"], HERE, &[less]);
        assert!(passed && said.contains("less than recorded") && said.contains("--bless"), "{said}");
    }
}

#[test]
fn cases_that_are_not_in_both_tables_fail() {
    let (passed, said) = compare(&["a 1000 2.00 0"], HERE, &["a 1000 2.00 0", "b 1 0.00 0"]);
    assert!(!passed && said.contains("not recorded"), "{said}");
    let (passed, said) = compare(&["a 1000 2.00 0", "b 1 0.00 0"], HERE, &["a 1000 2.00 0"]);
    assert!(!passed && said.contains("b: recorded, but there is no such case"), "{said}");
}

#[test]
fn an_empty_measurement_fails() {
    let (passed, said) = compare(&["a 1000 2.00 0"], HERE, &[]);
    assert!(!passed, "{said}");
}

#[test]
fn the_page_shows_what_is_recorded() {
    let read = |name| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).expect(name);
    let (recorded, page) = (read("benches/instructions/recorded.txt"), read("docs/performance.md"));
    let cases = recorded.lines().filter(|line| !line.starts_with('#'));
    let mut count = 0;
    for case in cases {
        let words: Vec<_> = case.split(' ').collect();
        let &[name, instructions, allocations, _] = words.as_slice() else { panic!("{case}") };
        let row = page.lines().find(|line| line.starts_with(&format!("| {name} |"))).expect(name);
        let figures = format!("| {instructions} | {} |", allocations.trim_end_matches(".00"));
        assert!(row.contains(&figures), "{row} is not {case}; scripts/instructions --bless writes both");
        count += 1;
    }
    assert!(count > 9, "{count} cases");
}
