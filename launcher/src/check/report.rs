//! The report as text and as JSON. Pure.

use std::fmt::Write as _;

use serde_json::Value;

use super::finding::{Finding, Purpose, Verdict, commands};

/// For people: a line for each finding, what each purpose lacks, and one block of commands for root.
pub fn plain(findings: &[Finding], purpose: Option<Purpose>) -> String {
    let mut text = String::new();
    for group in Purpose::ALL {
        for finding in findings.iter().filter(|finding| finding.group == group) {
            let _ =
                writeln!(text, "{}  {}: {}", finding.verdict(purpose).word(), finding.name, finding.finding);
            let fix = finding.fix();
            if !fix.is_empty() && finding.verdict(purpose) != Verdict::Pass {
                let _ = writeln!(text, "      as root: {fix}");
            }
        }
    }
    for shown in Purpose::ALL.into_iter().filter(|&shown| purpose.is_none_or(|purpose| purpose >= shown)) {
        let lacks = lacks(findings, shown).map(|finding| finding.name).collect::<Vec<_>>();
        let _ = match &lacks[..] {
            [] => writeln!(text, "{}: works", shown.word()),
            lacks => writeln!(text, "{}: does not work: {}", shown.word(), lacks.join(", ")),
        };
    }
    let commands = mending(findings, purpose);
    if !commands.is_empty() {
        let _ = writeln!(text, "\nWhat root has to do, once; then check again:\n\n{}", commands.join("\n"));
    }
    text
}

/// The commands that mend what stops `purpose`.
pub fn mending(findings: &[Finding], purpose: Option<Purpose>) -> Vec<String> {
    commands(lacks(findings, purpose.unwrap_or(Purpose::Cluster)).flat_map(|finding| &finding.remedies))
}

/// What stops `purpose`.
pub fn lacks(findings: &[Finding], purpose: Purpose) -> impl Iterator<Item = &Finding> {
    findings.iter().filter(move |finding| finding.verdict(Some(purpose)) == Verdict::Fail)
}

/// For programs: a JSON array, one line for each finding.
pub fn json(findings: &[Finding], purpose: Option<Purpose>) -> String {
    let lines = findings.iter().map(|finding| {
        let pairs = [
            ("name", finding.name),
            ("verdict", finding.verdict(purpose).word()),
            ("finding", &finding.finding),
            ("fix", &finding.fix()),
            ("group", finding.group.word()),
        ];
        let pairs = pairs.map(|(name, text)| format!("\"{name}\": {}", Value::from(text)));
        format!("  {{{}}}", pairs.join(", "))
    });
    format!("[\n{}\n]\n", lines.collect::<Vec<_>>().join(",\n"))
}

#[cfg(test)]
mod tests {
    use super::super::finding::Remedy;
    use super::*;

    fn findings() -> [Finding; 3] {
        [
            Finding::good(Purpose::Launch, "a", "fine"),
            Finding::less(Purpose::Launch, "b", "less").mended_by([Remedy::Command("do this".into())]),
            Finding::stops(Purpose::Node, "c", "not there").mended_by([Remedy::Package("c")]),
        ]
    }

    #[test]
    fn report_names_the_fix_under_its_finding_and_the_commands_at_the_end() {
        assert_eq!(
            plain(&findings(), None),
            "pass  a: fine\nwarn  b: less\n      as root: do this\nfail  c: not there\n      as root: apt-get install c\n\
             launch: works\nnode: does not work: c\ncluster: does not work: c\n\n\
             What root has to do, once; then check again:\n\napt-get install -y c\n"
        );
    }

    #[test]
    fn a_purpose_that_is_served_needs_no_commands() {
        let text = plain(&findings()[..2], Some(Purpose::Launch));
        assert!(text.ends_with("launch: works\n"), "{text}");
    }

    #[test]
    fn json_has_all_that_the_text_has() {
        let findings =
            [Finding::stops(Purpose::Node, "a b", "\"quoted\"\n").mended_by([Remedy::Package("c")])];
        assert_eq!(
            json(&findings, None),
            "[\n  {\"name\": \"a b\", \"verdict\": \"fail\", \"finding\": \"\\\"quoted\\\"\\n\", \
             \"fix\": \"apt-get install c\", \"group\": \"node\"}\n]\n"
        );
        assert_eq!(json(&[], None), "[\n\n]\n");
    }
}
