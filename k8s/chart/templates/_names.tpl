{{- define "feedback-agent.name" -}}
{{ .Release.Name }}
{{- end }}

{{- define "feedback-agent.selector" -}}
app.kubernetes.io/name: feedback-agent
app.kubernetes.io/instance: {{ .Values.track }}
{{- end }}

{{- define "feedback-agent.labels" -}}
app.kubernetes.io/name: feedback-agent
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "feedback-agent.image" -}}
{{ .Values.image.repository }}
{{- if .Values.image.digest }}@{{ .Values.image.digest }}
{{- else }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{- define "feedback-agent.config" -}}
{{ toYaml .Values.config }}
{{- end }}
