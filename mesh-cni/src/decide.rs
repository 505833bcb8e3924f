//! Whether a pod goes on, waits, or fails. Pure; called by `run` after each answer, or missing answer, of the agent.

use mesh_proto::convert::CniAnswer;
use mesh_proto::scope::Member;

/// What to do with the pod.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Next {
    /// It goes on.
    Pass,
    /// It waits, and the agent is asked again until the time is over.
    Wait(String),
    /// It fails.
    Refuse(String),
}

/// Decides about a pod that is added. The agent's word counts; if it has none, the file that it left behind.
pub fn add(answer: Result<CniAnswer, String>, member: &Member) -> Next {
    let unknown = match answer {
        Ok(CniAnswer::Pass(_) | CniAnswer::Ready) => return Next::Pass,
        Ok(CniAnswer::Wait(why)) => return Next::Wait(why),
        Ok(CniAnswer::Refused(why)) => return Next::Refuse(why),
        Ok(CniAnswer::Unknown(why)) => why,
        Err(why) => format!("the node's agent is away ({why})"),
    };
    match member {
        Member::Out => Next::Pass,
        Member::In => Next::Wait(format!("the pod is to be in the mesh, and {unknown}")),
        Member::Unknown(file) => {
            Next::Wait(format!("it is not known whether the pod is to be in the mesh: {unknown}, and {file}"))
        }
    }
}

/// Decides about a pod that is checked: what the kernel has captured stays so while the agent is away.
pub fn check(answer: Result<CniAnswer, String>) -> Next {
    match answer {
        Ok(CniAnswer::Wait(why)) => Next::Wait(why),
        Ok(CniAnswer::Refused(why)) => Next::Refuse(why),
        Ok(CniAnswer::Pass(_) | CniAnswer::Ready | CniAnswer::Unknown(_)) | Err(_) => Next::Pass,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_EN5_EN6_nothing_that_may_be_in_the_mesh_goes_on_unasked() {
        let text = |text: &str| text.to_owned();
        let answers = || {
            [
                ("pass", Ok(CniAnswer::Pass(text("no label")))),
                ("ready", Ok(CniAnswer::Ready)),
                ("wait", Ok(CniAnswer::Wait(text("no certificate")))),
                ("refused", Ok(CniAnswer::Refused(text("two addresses")))),
                ("unknown", Ok(CniAnswer::Unknown(text("no list yet")))),
                ("away", Err(text("connection refused"))),
            ]
        };
        let members = [("in", Member::In), ("out", Member::Out), ("newer", Member::Unknown(text("no file")))];
        for (word, answer) in answers() {
            for (known, member) in &members {
                let next = add(answer.clone(), member);
                let expected = match (word, *known) {
                    ("pass" | "ready", _) | ("unknown" | "away", "out") => "pass",
                    ("wait", _) | ("unknown" | "away", "in" | "newer") => "wait",
                    _ => "refuse",
                };
                let got = match &next {
                    Next::Pass => "pass",
                    Next::Wait(_) => "wait",
                    Next::Refuse(_) => "refuse",
                };
                assert_eq!(got, expected, "{word}, {known}: {next:?}");
            }
            let checked = check(answer);
            assert_eq!(checked == Next::Pass, !matches!(word, "wait" | "refused"), "{word}: {checked:?}");
        }
    }
}
