//! The names of gRPC's statuses, in the ways in which they are written. Used by whoever shows a status, or reads one that somebody has written.

/// By number, as gRPC and configurations write them.
pub const NAMES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];
/// By number, as Envoy's access log has them.
const CAMEL: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// `Unavailable`; none for a number that is no status.
#[must_use]
pub fn camel(status: u16) -> Option<&'static str> {
    CAMEL.get(usize::from(status)).copied()
}

/// `UNAVAILABLE`; none for a number that is no status.
#[must_use]
pub fn snake(status: u16) -> Option<&'static str> {
    NAMES.get(usize::from(status)).copied()
}

/// The number of `UNAVAILABLE`, in whatever case and with dashes for underscores.
#[must_use]
pub fn by_name(text: &str) -> Option<u16> {
    let plain = |byte: u8| if byte == b'-' { b'_' } else { byte.to_ascii_uppercase() };
    (0..).zip(NAMES).find_map(|(status, name)| text.bytes().map(plain).eq(name.bytes()).then_some(status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_have_the_numbers_of_grpc() {
        for (status, camels, snakes) in [
            (0, Some("OK"), Some("OK")),
            (1, Some("Canceled"), Some("CANCELLED")),
            (4, Some("DeadlineExceeded"), Some("DEADLINE_EXCEEDED")),
            (14, Some("Unavailable"), Some("UNAVAILABLE")),
            (16, Some("Unauthenticated"), Some("UNAUTHENTICATED")),
            (17, None, None),
        ] {
            assert_eq!((camel(status), snake(status)), (camels, snakes), "{status}");
        }
    }

    #[test]
    fn statuses_are_found_by_their_names() {
        for (text, status) in [
            ("OK", Some(0)),
            ("DEADLINE_EXCEEDED", Some(4)),
            ("deadline_exceeded", Some(4)),
            ("deadline-exceeded", Some(4)),
            ("Unavailable", Some(14)),
            ("DEADLINE", None),
            ("DEADLINE_EXCEEDED_", None),
            ("DEADLINE EXCEEDED", None),
            ("14", None),
            ("", None),
        ] {
            assert_eq!(by_name(text), status, "{text:?}");
        }
    }
}
