{{/* What the platform decides, and names that several objects share. The chart keeps to what `meshctl` renders itself: if, else, with, range, include,
variables, and the functions default, quote, toYaml, indent, nindent, eq, ne, and, or, not, printf, dict, list, required. */}}

{{- define "undermesh.tag" -}}
{{ default .Chart.AppVersion .Values.image.tag }}
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
