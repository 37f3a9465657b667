{{- /* Kubernetes cannot show a certificate to gRPC health, so the image asks itself; the edge shows its health to everybody. */ -}}
{{- define "plexsphere.probes" -}}
{{- $name := index . 0 }}{{ $probes := index . 1 -}}
startupProbe:
  {{- include "plexsphere.ask" (list $name "ready" $probes) | nindent 2 }}
  periodSeconds: 3
  failureThreshold: {{ max 1 (div $probes.startupSeconds 3) }}
readinessProbe:
  {{- include "plexsphere.ask" (list $name "ready" $probes) | nindent 2 }}
  periodSeconds: {{ $probes.periodSeconds }}
  failureThreshold: {{ $probes.readinessFailures }}
livenessProbe:
  {{- include "plexsphere.ask" (list $name "live" $probes) | nindent 2 }}
  periodSeconds: {{ $probes.periodSeconds }}
  failureThreshold: {{ $probes.livenessFailures }}
{{- end }}

{{- define "plexsphere.ask" -}}
{{- $name := index . 0 }}{{ $what := index . 1 -}}
{{- if eq $name "gateway" -}}
httpGet: {scheme: HTTPS, port: main, path: {{ ternary "/v1/health" "/v1/version" (eq $what "ready") }}}
{{- else -}}
exec: {command: [/app/venv/bin/python, -m, libs.probe, --config, /etc/plexsphere/{{ $name }}.toml, {{ $what }}]}
{{- end }}
timeoutSeconds: {{ (index . 2).timeoutSeconds }}
{{- end }}
