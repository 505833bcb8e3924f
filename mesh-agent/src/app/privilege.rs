//! What the agent may do: asked once at the start of keeper and worker, so that everything that is missing is named at once and not one
//! failed system call after the other.

/// Exit status when the process may not do what an agent does (EX_NOPERM).
pub const EXIT_PERMISSION: i32 = 77;

/// Capabilities without which nothing works: routes and programs in pods; entering pods, bpffs. The second implies CAP_BPF.
const NEEDED: [(&str, u32); 2] = [("CAP_NET_ADMIN", 12), ("CAP_SYS_ADMIN", 21)];

/// One line about what this process lacks; none if it lacks nothing, or if that cannot be read.
pub fn missing() -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let capabilities = u64::from_str_radix(field("CapEff:")?, 16).ok()?;
    // Real, effective, saved, of files.
    let user = field("Uid:")?.split_whitespace().nth(1)?.parse().ok()?;
    judge(user, capabilities)
}

fn judge(user: u32, capabilities: u64) -> Option<String> {
    let user = (user != 0).then(|| format!("user 0 (this is user {user})"));
    let lacks = |number: &u32| capabilities >> number & 1 == 0;
    let lacking = NEEDED.iter().filter(|(_, number)| lacks(number)).map(|(name, _)| (*name).to_owned());
    let all: Vec<String> = user.into_iter().chain(lacking).collect();
    (!all.is_empty()).then(|| format!("the agent needs {}", all.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardening_b199_everything_that_is_missing_is_named_at_once() {
        let rows = [
            (0, u64::MAX, None),
            (0, 1 << 12 | 1 << 21, None),
            (0, 1 << 12, Some("the agent needs CAP_SYS_ADMIN")),
            (65534, 0, Some("the agent needs user 0 (this is user 65534), CAP_NET_ADMIN, CAP_SYS_ADMIN")),
            (1000, u64::MAX, Some("the agent needs user 0 (this is user 1000)")),
        ];
        for (user, capabilities, expected) in rows {
            assert_eq!(judge(user, capabilities).as_deref(), expected, "{user} {capabilities:x}");
        }
    }
}
