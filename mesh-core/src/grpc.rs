//! The names of gRPC's statuses, as lines of the access log have them. Used by whoever writes `%GRPC_STATUS%`.

/// In Envoy's two ways to write them, by number.
const NAMES: [(&str, &str); 17] = [
    ("OK", "OK"),
    ("Canceled", "CANCELLED"),
    ("Unknown", "UNKNOWN"),
    ("InvalidArgument", "INVALID_ARGUMENT"),
    ("DeadlineExceeded", "DEADLINE_EXCEEDED"),
    ("NotFound", "NOT_FOUND"),
    ("AlreadyExists", "ALREADY_EXISTS"),
    ("PermissionDenied", "PERMISSION_DENIED"),
    ("ResourceExhausted", "RESOURCE_EXHAUSTED"),
    ("FailedPrecondition", "FAILED_PRECONDITION"),
    ("Aborted", "ABORTED"),
    ("OutOfRange", "OUT_OF_RANGE"),
    ("Unimplemented", "UNIMPLEMENTED"),
    ("Internal", "INTERNAL"),
    ("Unavailable", "UNAVAILABLE"),
    ("DataLoss", "DATA_LOSS"),
    ("Unauthenticated", "UNAUTHENTICATED"),
];

/// `Unavailable`; none for a number that is no status.
#[must_use]
pub fn camel(status: u16) -> Option<&'static str> {
    NAMES.get(usize::from(status)).map(|(camel, _)| *camel)
}

/// `UNAVAILABLE`; none for a number that is no status.
#[must_use]
pub fn snake(status: u16) -> Option<&'static str> {
    NAMES.get(usize::from(status)).map(|(_, snake)| *snake)
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
}
