import { defineConfig, devices } from '@playwright/test';

// Where a browser is not Playwright's own (`npx playwright install chromium`).
const { CHROMIUM: executablePath } = process.env;

export default defineConfig({
  testDir: 'tests',
  fullyParallel: true,
  workers: Number(process.env.PGHARNESS_WORKERS ?? 1),
  reporter: [['list'], ['json', { outputFile: 'results.json' }]],
  projects: [
    { name: 'api', testMatch: '*.spec.js' },
    { name: 'browser', testMatch: '*.page.js', use: { ...devices['Desktop Chrome'], launchOptions: { executablePath } } },
  ],
});
