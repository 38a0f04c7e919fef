{{/* The chart's name in the names of objects. As part of another chart it may have an alias, such as trainingOperator. */}}
{{- define "spinrun.name" -}}
{{- default (.Chart.Name | kebabcase) .Values.nameOverride -}}
{{- end -}}

{{/* Beginning of the names of objects: the release's name, with the chart's unless it says that already. */}}
{{- define "spinrun.fullname" -}}
{{- $name := include "spinrun.name" . -}}
{{- $both := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) -}}
{{- default $both .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Name of the operator's own objects. */}}
{{- define "spinrun.operator" -}}
{{- include "spinrun.fullname" . }}-operator
{{- end -}}

{{- define "spinrun.serviceAccount" -}}
{{- default (.Values.serviceAccount.create | ternary (include "spinrun.operator" .) "default") .Values.serviceAccount.name -}}
{{- end -}}

{{/* Labels by which the operator's pod is found; they can never change. */}}
{{- define "spinrun.selector" -}}
app.kubernetes.io/name: {{ include "spinrun.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "spinrun.labels" -}}
{{ include "spinrun.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Full name of an image. Takes a list: the root, and the image's block of values. */}}
{{- define "spinrun.image" -}}
{{- $root := first . -}}
{{- $image := last . -}}
{{- with default $image.registry $root.Values.imageRegistry }}{{ . }}/{{ end -}}
{{- $image.repository -}}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ default $root.Chart.AppVersion $image.tag }}{{ end -}}
{{- end -}}

{{/* A value as the text of an environment variable. JSON writes a large number out, where Go would shorten it to 1e+09. */}}
{{- define "spinrun.text" -}}
{{- if kindIs "slice" . }}{{ join "," . }}{{ else if kindIs "string" . }}{{ . }}{{ else }}{{ toJson . }}{{ end -}}
{{- end -}}

{{/* Selector of the namespaces with these names; of all when there are none. */}}
{{- define "spinrun.namespaceSelector" -}}
{{- if . -}}
matchExpressions:
  - key: kubernetes.io/metadata.name
    operator: In
    values: {{ toJson . }}
{{- else -}}
{}
{{- end -}}
{{- end -}}

{{/* What the operator does in a namespace that it serves: docs/rbac.md says why, and a test that nothing is missing or unused. */}}
{{- define "spinrun.rules" -}}
- apiGroups: [spinrun.dev]
  resources: [spinruns]
  verbs: [get, list, watch, delete]
- apiGroups: [spinrun.dev]
  resources: [spinruns/status]
  verbs: [update]
- apiGroups: [""]
  resources: [configmaps, serviceaccounts, services]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [persistentvolumeclaims, secrets]
  verbs: [get, list, watch, create]
- apiGroups: [apps]
  resources: [statefulsets]
  verbs: [get, list, watch, create, patch]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch]
{{- if .Values.settings.podMonitor }}
- apiGroups: [monitoring.coreos.com]
  resources: [podmonitors]
  verbs: [get, list, watch, create, patch]
{{- end }}
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [events]
  verbs: [list, create, patch]
{{- end -}}
