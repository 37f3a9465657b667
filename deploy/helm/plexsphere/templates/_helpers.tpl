{{- /* Labels of an object; (list $ name component). */ -}}
{{- define "plexsphere.labels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ index . 1 }}
app.kubernetes.io/part-of: plexsphere
app.kubernetes.io/component: {{ index . 2 }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end }}

{{- /* What selects the pods of a service, for good: (list name). */ -}}
{{- define "plexsphere.selector" -}}
app.kubernetes.io/name: {{ . }}
app.kubernetes.io/part-of: plexsphere
{{- end }}

{{- /* A service's block over the defaults: (list $ name). */ -}}
{{- define "plexsphere.block" -}}
{{- $root := index . 0 -}}
{{- mergeOverwrite (deepCopy $root.Values.defaults) (deepCopy (index $root.Values.services (index . 1))) | toYaml -}}
{{- end }}

{{- define "plexsphere.image" -}}
{{- $root := index . 0 }}{{ $own := index . 2 -}}
{{- $path := printf "%s/%s" $root.Values.image.repository (index . 1) -}}
{{- with $root.Values.image.registry }}{{ $path = printf "%s/%s" . $path }}{{ end -}}
{{- if $own.digest }}{{ $path }}@{{ $own.digest }}
{{- else }}{{ $path }}:{{ $own.tag | default $root.Values.image.tag | default $root.Chart.AppVersion }}{{ end -}}
{{- end }}

{{- /* The settings file of a process: the one that ships, with what this installation says over it. (list $ name). */ -}}
{{- define "plexsphere.settings" -}}
{{- $root := index . 0 }}{{ $name := index . 1 }}{{ $values := $root.Values -}}
{{- $file := $root.Files.Get (printf "config/%s.toml" $name) | fromToml -}}
{{- with $values.backends.postgres }}{{ if $file.postgres -}}
  {{- $_ := mergeOverwrite $file (dict "postgres" (pick . "host" "port" "database")) -}}
{{- end }}{{ end -}}
{{- with $values.backends.openbao }}{{ if $file.openbao -}}
  {{- $_ := set $file.openbao "address" (printf "https://%s:%d" .host (int .port)) -}}
  {{- if .kubernetes.enabled -}}
    {{- $_ := set $file.openbao "kubernetes" (dict "token_file" "/run/plexsphere/openbao/token" "mount" .kubernetes.mount) -}}
  {{- end -}}
{{- end }}{{ end -}}
{{- with $values.backends.nats }}{{ if $file.nats -}}
  {{- $_ := set $file.nats "address" (printf "tls://%s:%d" .host (int .port)) -}}
{{- end }}{{ end -}}
{{- with $values.backends.spicedb }}{{ if $file.spicedb -}}
  {{- $_ := mergeOverwrite $file.spicedb (dict "address" (printf "%s:%d" .host (int .port)) "name" .name) -}}
{{- end }}{{ end -}}
{{- if $file.telemetry }}{{ $_ := set $file.telemetry "otlp_endpoint" $values.backends.otlp.endpoint }}{{ end -}}
{{- $url := $values.edge.url -}}
{{- if $file.issuer }}{{ $_ := set $file "issuer" $url }}{{ end -}}
{{- if $file.sign_in }}{{ $_ := set $file.sign_in "edge_url" $url }}{{ end -}}
{{- if $file.public_url }}{{ $_ := mergeOverwrite $file (dict "public_url" $url "allowed_origins" (list $url)) }}{{ end -}}
{{- if and $file.certificate $values.edge.certificateSecret -}}
  {{- $_ := set $file "certificate" (dict "certificate_file" "/run/plexsphere/edge/tls.crt" "key_file" "/run/plexsphere/edge/tls.key") -}}
{{- end -}}
{{- if hasKey $values.services $name }}{{ $_ := mergeOverwrite $file (include "plexsphere.block" . | fromYaml).settings }}{{ end -}}
{{- /* YAML has made every number a fraction; settings that count would refuse one. */ -}}
{{- regexReplaceAll "(?m)([=\\[,] *)(-?[0-9]+)\\.0\\b" (toToml $file) "${1}${2}" -}}
{{- end }}

{{- /* Names of the files in /run/plexsphere/secrets that the settings name. */ -}}
{{- define "plexsphere.files" -}}
{{- regexFindAll "/run/plexsphere/secrets/[a-z0-9.-]+" (include "plexsphere.settings" .) -1 | uniq | sortAlpha | toJson -}}
{{- end }}

{{- define "plexsphere.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
# Volumes with keys are readable by this group and by nobody else.
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "plexsphere.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end }}

{{- /* A projected certificate, under the names that the settings use: (list secret name). */ -}}
{{- define "plexsphere.certificate" -}}
- secret:
    name: {{ index . 0 }}
    items:
      - {key: tls.crt, path: {{ index . 1 }}.crt}
      - {key: tls.key, path: {{ index . 1 }}.key}
{{- end }}

{{- define "plexsphere.authority" -}}
- secret: {name: {{ . }}, items: [{key: ca.crt, path: ca.crt}]}
{{- end }}

{{- define "plexsphere.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - {name: {{ . }}}
  {{- end }}
{{- end }}
{{- end }}
