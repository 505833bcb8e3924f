//! What of a pod's traffic the mesh leaves alone, in an enrolment. Called by [`super::enrol`].

use ipnet::IpNet;
use mesh_core::CaptureRules;

use super::ConvertError;
use crate::wire::enrol as wire;

/// Reads it. Nothing is dropped in silence: a rule that is not understood refuses the enrolment, for it may be one that captures.
pub(super) fn read(rules: wire::Capture) -> Result<CaptureRules, ConvertError> {
    Ok(CaptureRules {
        probe_ports: ports("capture.probe_ports", &rules.probe_ports)?,
        inbound_open: rules.inbound_open,
        inbound_only: rules.inbound_only.map(|only| ports("capture.inbound_only", &only.ports)).transpose()?,
        inbound_except: ports("capture.inbound_except", &rules.inbound_except)?,
        outbound_only: rules.outbound_only.map(|only| ranges("capture.outbound_only", &only.ranges)).transpose()?,
        outbound_except: ranges("capture.outbound_except", &rules.outbound_except)?,
        outbound_also: ports("capture.outbound_also", &rules.outbound_also)?,
        outbound_except_ports: ports("capture.outbound_except_ports", &rules.outbound_except_ports)?,
    })
}

pub(super) fn write(rules: &CaptureRules) -> wire::Capture {
    let ports = |list: &[u16]| list.iter().map(|port| u32::from(*port)).collect();
    let ranges = |list: &[IpNet]| list.iter().map(ToString::to_string).collect();
    wire::Capture {
        probe_ports: ports(&rules.probe_ports),
        inbound_open: rules.inbound_open,
        inbound_only: rules.inbound_only.as_deref().map(|only| wire::Ports { ports: ports(only) }),
        inbound_except: ports(&rules.inbound_except),
        outbound_only: rules.outbound_only.as_deref().map(|only| wire::Ranges { ranges: ranges(only) }),
        outbound_except: ranges(&rules.outbound_except),
        outbound_also: ports(&rules.outbound_also),
        outbound_except_ports: ports(&rules.outbound_except_ports),
    }
}

fn ports(field: &'static str, list: &[u32]) -> Result<Vec<u16>, ConvertError> {
    few(field, list.len())?;
    let port = |port: &u32| u16::try_from(*port).ok().filter(|port| *port != 0);
    list.iter()
        .map(|text| port(text).ok_or_else(|| ConvertError::invalid(field, format!("{text} is no port"))))
        .collect()
}

fn ranges(field: &'static str, list: &[String]) -> Result<Vec<IpNet>, ConvertError> {
    few(field, list.len())?;
    let range = |text: &String| text.parse().map_err(|_| ConvertError::invalid(field, "not a range of addresses"));
    list.iter().map(range).collect()
}

fn few(field: &'static str, count: usize) -> Result<(), ConvertError> {
    let limit = CaptureRules::MOST;
    if count > limit {
        return Err(ConvertError::invalid(field, format!("{count} of them, the limit is {limit}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_come_back_as_they_were_sent_and_what_is_not_understood_is_refused() {
        let all = CaptureRules {
            probe_ports: vec![8080, 9090],
            inbound_open: true,
            inbound_only: Some(vec![]),
            inbound_except: vec![1, 65_535],
            outbound_only: Some(vec!["198.18.0.0/15".parse().unwrap(), "fd00:198::/32".parse().unwrap()]),
            outbound_except: vec!["0.0.0.0/0".parse().unwrap()],
            outbound_also: vec![5432],
            outbound_except_ports: vec![443],
        };
        for rules in [all.clone(), CaptureRules::default()] {
            assert_eq!(read(write(&rules)), Ok(rules));
        }
        type Change = fn(&mut wire::Capture);
        let bad: [(&str, Change); 6] = [
            ("port 0", |c| c.probe_ports = vec![0]),
            ("port too large", |c| c.inbound_except = vec![65_536]),
            ("port in a list", |c| c.inbound_only = Some(wire::Ports { ports: vec![0] })),
            ("no range", |c| c.outbound_except = vec!["198.18.0.1".into()]),
            ("range in a list", |c| c.outbound_only = Some(wire::Ranges { ranges: vec!["*".into()] })),
            ("too many", |c| c.outbound_also = vec![1; CaptureRules::MOST + 1]),
        ];
        for (name, change) in bad {
            let mut wire = write(&all);
            change(&mut wire);
            assert!(read(wire).is_err(), "{name}");
        }
    }
}
