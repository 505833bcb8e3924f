{{/* What the platform decides, and names that several objects share. The chart keeps to what `meshctl` renders itself: if, else, with, range, include,
variables, and the functions default, quote, toYaml, indent, nindent, eq, ne, and, or, not, printf, dict, list, required. */}}

{{- define "undermesh.tag" -}}
{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}

{{/* An image. With a digest it is always the same; the tag then says no more than which version that is. */}}
{{- define "undermesh.image" -}}
{{ .root.Values.image.hub }}/{{ .name }}:{{ include "undermesh.tag" .root }}{{ if .digest }}@{{ .digest }}{{ end }}
{{- end -}}

{{/* Labels of one component's objects. Called with (dict "root" . "component" "mesh-agent"). */}}
{{- define "undermesh.labels" -}}
app: {{ .component }}
{{ include "undermesh.selector" . }}
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/part-of: undermesh
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* By which pods are selected; never changes. */}}
{{- define "undermesh.selector" -}}
app.kubernetes.io/name: {{ .component }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end -}}

{{- define "undermesh.cniBinDir" -}}
{{- if .Values.agent.cniBinDir -}}
{{ .Values.agent.cniBinDir }}
{{- else if eq .Values.platform "gke" -}}
/home/kubernetes/bin
{{- else if eq .Values.platform "openshift" -}}
/var/lib/cni/bin
{{- else if eq .Values.platform "k3s" -}}
/var/lib/rancher/k3s/data/cni
{{- else if eq .Values.platform "k3d" -}}
/bin
{{- else if eq .Values.platform "microk8s" -}}
/var/snap/microk8s/current/opt/cni/bin
{{- else -}}
/opt/cni/bin
{{- end -}}
{{- end -}}

{{- define "undermesh.cniConfDir" -}}
{{- if .Values.agent.cniConfDir -}}
{{ .Values.agent.cniConfDir }}
{{- else if eq .Values.platform "openshift" -}}
/etc/cni/multus/net.d
{{- else if or (eq .Values.platform "k3s") (eq .Values.platform "k3d") -}}
/var/lib/rancher/k3s/agent/etc/cni/net.d
{{- else if eq .Values.platform "microk8s" -}}
/var/snap/microk8s/current/args/cni-network
{{- else -}}
/etc/cni/net.d
{{- end -}}
{{- end -}}

{{- define "undermesh.netnsDir" -}}
{{- if .Values.agent.netnsDir -}}
{{ .Values.agent.netnsDir }}
{{- else if eq .Values.platform "minikube" -}}
/var/run/docker/netns
{{- else -}}
/var/run/netns
{{- end -}}
{{- end -}}

{{/* A container of the agent. Called with (dict "root" . "name" "mesh-agent" "resources" .Values.agent.resources). */}}
{{- define "undermesh.agentContainer" -}}
- name: {{ .name }}
  image: "{{ include "undermesh.image" (dict "root" .root "name" "mesh-agent" "digest" .root.Values.image.digests.agent) }}"
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  args:
    {{- if .root.Values.agent.istioCni.enabled }}
    - --zds=/var/run/ztunnel/ztunnel.sock
    {{- else }}
    - --kube=cluster
    {{- end }}
    - --node=$(NODE_NAME)
    {{- if and .root.Values.control.enabled (not .root.Values.agent.controlPlane.address) }}
    - --control=mesh-control.{{ .root.Release.Namespace }}.svc:15012
    {{- else }}
    - --control={{ required "agent.controlPlane.address must say who the agents ask where control.enabled is false" .root.Values.agent.controlPlane.address }}
    {{- end }}
    - --control-root=/var/run/secrets/undermesh/root-cert.pem
    - --token=/var/run/secrets/tokens/undermesh
    - --run-dir=/run/undermesh
    - --bpffs=/sys/fs/bpf/undermesh
    - --proc=/host/proc
    - --netns=/run/netns
    - --metrics={{ .root.Values.listenAddress }}:15020
    - --readiness={{ .root.Values.listenAddress }}:15021
    - --trust-domain={{ .root.Values.trustDomain }}
    - --cluster-domain={{ .root.Values.clusterDomain }}
    - --cluster-id={{ .root.Values.clusterId }}
    - --udp={{ .root.Values.agent.udp }}
    {{- if .root.Values.agent.sidecars }}
    - --sidecars=on
    {{- end }}
    - --handover={{ .root.Values.agent.drain }}
    - --drain={{ .root.Values.agent.drainAlone }}
    - --log-level={{ .root.Values.log.level }}
    - --log-format={{ .root.Values.log.format }}
    {{- with .root.Values.agent.cgroups.pods }}
    - --pods-cgroup={{ . }}
    {{- end }}
    {{- with .root.Values.agent.cgroups.own }}
    - --agent-cgroup={{ . }}
    {{- end }}
    {{- if and .root.Values.agent.cni.enabled (not .root.Values.agent.istioCni.enabled) }}
    - --cni=on
    {{- if not .root.Values.agent.cni.ownFile }}
    - --cni-own-file=off
    {{- end }}
    {{- else }}
    # What agents have left in the folders of the node's CNI when they had the plugin goes.
    - --cni=remove
    {{- end }}
    {{- with .root.Values.network }}
    - --network={{ . }}
    {{- end }}
    {{- with .root.Values.meshRanges }}
    - --mesh-ranges={{ range $i, $r := . }}{{ if $i }},{{ end }}{{ $r }}{{ end }}
    {{- end }}
    {{- if .root.Values.agent.workers }}
    - --workers={{ .root.Values.agent.workers }}
    {{- end }}
    {{- range .root.Values.agent.extraArgs }}
    - {{ . | quote }}
    {{- end }}
  env:
    - name: NODE_NAME
      valueFrom:
        fieldRef:
          fieldPath: spec.nodeName
    # Agents of this node stand in line: one leads.
    - name: UNDERMESH_STANDBY
      valueFrom:
        fieldRef:
          fieldPath: metadata.uid
  # There is no liveness probe: the keeper, its first process, starts a worker that ended or hangs anew, and holds its sockets meanwhile.
  # The ports are not declared: they are the node's, and with them declared two agents could not be on it in a rollout.
  {{- if eq .name "mesh-agent" }}
  # Until an agent of this pod leads, the one of the pod before it answers.
  startupProbe:
    exec:
      command: [/mesh-agent, in-charge, --run-dir=/run/undermesh]
    periodSeconds: 1
    timeoutSeconds: 5
    failureThreshold: 600
  readinessProbe:
    httpGet:
      path: /healthz/ready
      port: 15021
    periodSeconds: 3
    timeoutSeconds: 5
  {{- end }}
  {{- with .resources }}
  resources:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    privileged: false
    # SYS_ADMIN implies it.
    allowPrivilegeEscalation: true
    readOnlyRootFilesystem: true
    runAsUser: 0
    runAsGroup: 0
    capabilities:
      drop: [ALL]
      add:
        - NET_ADMIN # attach programs, make routes in pods
        - SYS_ADMIN # load programs, enter the network namespaces of pods; BPF and PERFMON are parts of it
        - SYS_PTRACE # look at the processes of pods
        {{- range .root.Values.agent.extraCapabilities }}
        - {{ . }}
        {{- end }}
    {{- with .root.Values.agent.seccompProfile }}
    seccompProfile:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- with .root.Values.agent.appArmorProfile }}
    appArmorProfile:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- if .root.Values.agent.seLinuxOptions }}
    seLinuxOptions:
      {{- toYaml .root.Values.agent.seLinuxOptions | nindent 6 }}
    {{- else if eq .root.Values.platform "openshift" }}
    seLinuxOptions:
      type: spc_t
    {{- end }}
  volumeMounts:
    - name: root-cert
      mountPath: /var/run/secrets/undermesh
      readOnly: true
    - name: token
      mountPath: /var/run/secrets/tokens
      readOnly: true
    {{- if .root.Values.agent.istioCni.enabled }}
    - name: istio-cni
      mountPath: /var/run/ztunnel
    {{- end }}
    - name: bpffs
      mountPath: /sys/fs/bpf
      mountPropagation: HostToContainer
    - name: cgroup
      mountPath: /sys/fs/cgroup
      mountPropagation: HostToContainer
    - name: netns
      mountPath: /run/netns
      mountPropagation: HostToContainer
      readOnly: true
    - name: proc
      mountPath: /host/proc
      readOnly: true
    - name: cni-bin
      mountPath: /opt/cni/bin
    - name: cni-conf
      mountPath: /etc/cni/net.d
    # When the plugin is taken off the node, it is taken out of what runtimes keep of the pods' networks, too.
    - name: cni-cache
      mountPath: /var/lib/cni/results
    - name: run
      mountPath: /run/undermesh
    - name: state
      mountPath: /var/lib/undermesh
{{- end -}}
